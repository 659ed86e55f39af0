"""lm-eval's transformers model without a fault of its shared log-likelihoods; imports lm-eval."""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM


class AlignedLM(HFLM):
    """`HFLM` whose log-likelihoods are right where one text is asked for with several contexts.

    HFLM (0.4.13) runs requests that agree in all tokens but the last once. It reads the continuations from the
    start of the longest one, which is wrong for those that begin later in the text: tasks made from the same
    sentences lost a third of their accuracy. Here such requests run apart; no others do.
    """

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation and whether it is the greedy one, without progress bars."""
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
