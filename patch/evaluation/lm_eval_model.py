"""Subclass of lm-eval's transformers model with a fix for its shared log-likelihoods; imports lm-eval."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM


class AlignedLM(HFLM):
    """`HFLM` with correct log-likelihoods for one text that is split into several contexts.

    HFLM (0.4.13) runs requests once if they agree in all tokens but the last. It reads the continuations from the
    start of the longest one, which is wrong for continuations that begin later in the text. Tasks made from the same
    sentences lost a third of their accuracy. This class runs only such requests separately.
    """

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood and whether it is the greedy one, without progress bars."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        widths: dict[tuple[int, ...], int] = {}
        now, later = [], []
        for index, (_, context, continuation) in enumerate(requests):
            width = widths.setdefault((*context, *continuation[:-1]), len(continuation))
            (now if width == len(continuation) else later).append(index)
        answers = dict(zip(now, super()._loglikelihood_tokens([requests[i] for i in now], **options), strict=True))
        if later:
            rest = self._loglikelihood_tokens([requests[i] for i in later], **options)
            answers |= zip(later, rest, strict=True)
        return [answers[index] for index in range(len(requests))]
