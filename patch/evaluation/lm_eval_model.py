"""Subclass of lm-eval's transformers model with correct log-likelihoods and clear limits; imports lm-eval."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from patch.errors import InputError

log = logging.getLogger(__name__)


class AlignedLM(HFLM):
    """`HFLM` with correct log-likelihoods for one text that is split into several contexts.

    HFLM (0.4.13) runs requests once if they agree in all tokens but the last. It reads the continuations from the
    start of the longest one, which is wrong for continuations that begin later in the text. Tasks made from the same
    sentences lost a third of their accuracy. This class runs only such requests separately.
    """

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood and whether it is the greedy one, without progress bars."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Return the answer to each prompt by greedy decoding, without progress bars.

        Raises:
            InputError: the answers may be longer than the model's context.
        """
        longest = max(normalize_gen_kwargs(one.args[1], self.max_gen_toks)["max_gen_toks"] for one in requests)
        if longest >= self.max_length:
            raise InputError(
                f"task `{requests[0].task_name}` generates up to {longest} tokens, but the context of the model has "
                f"{self.max_length}; remove the task or use a model with a longer context"
            )
        self._warn_of_cuts((len(self.tok_encode(one.args[0])) for one in requests), self.max_length - longest)
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _warn_of_cuts(self, lengths: Iterable[int], longest: int) -> None:
        cut = [length > longest for length in lengths]
        if any(cut):
            log.warning(
                "%d of %d prompts are longer than %d tokens, which the model's context has room for; they lose their "
                "beginning. Use fewer few-shot examples.",
                sum(cut),
                len(cut),
                longest,
            )

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        self._warn_of_cuts((len(context) + len(text) for _, context, text in requests), self.max_length + 1)
        return self._without_shared_requests(requests, **options)

    def _without_shared_requests(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        widths: dict[tuple[int, ...], int] = {}
        now, later = [], []
        for index, (_, context, continuation) in enumerate(requests):
            width = widths.setdefault((*context, *continuation[:-1]), len(continuation))
            (now if width == len(continuation) else later).append(index)
        answers = dict(zip(now, super()._loglikelihood_tokens([requests[i] for i in now], **options), strict=True))
        if later:
            rest = self._without_shared_requests([requests[i] for i in later], **options)
            answers |= zip(later, rest, strict=True)
        return [answers[index] for index in range(len(requests))]
