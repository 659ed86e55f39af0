"""Windows of several documents, of which none sees another: positions and masks for a model of any family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from patch.data.tokens import Separator
from patch.errors import InputError
from patch.learning.settings import Learning

# Largest part of a change in one document that may be seen in the next: rounding, and none is expected.
_TOLERANCE = 1e-3


class DocumentCut:
    """What a model is given beside tokens so that no token attends to another document of its window.

    Positions start again with each document. From that alone most families' masks follow in transformers, those of
    sliding layers too; where they do not, as in OPT, a mask is given. Which of the two works is tried out, once.

    Args:
        model: causal language model; does three short forward passes at most.
        separator: what parts the documents of the windows.

    Raises:
        InputError: neither works for the model.
    """

    def __init__(self, model: nn.Module, separator: Separator) -> None:
        self.separator = separator
        self._model = model
        self._explicit = False
        if self._leaks():
            # A mask of ours would take the place of a sliding layer's.
            self._explicit = getattr(model.config.get_text_config(), "sliding_window", None) is None
            if not self._explicit or self._leaks():
                raise InputError(
                    f"`cut_attention` is true, but {type(model).__name__} takes no positions that part the documents "
                    "of a window; set it to false"
                )

    def starts(self, tokens: Tensor) -> Tensor:
        """Where documents begin: `[batch, seqlen]` ids -> as many bools, the first of each row true.

        A piece of a document that a window begins with counts as one.
        """
        starts = torch.ones_like(tokens, dtype=torch.bool)
        starts[:, 1:] = tokens[:, :-1] == self.separator.eos
        if self.separator.bos is not None:
            # Some tokenizers have one token for both ends.
            starts[:, 1:] &= tokens[:, 1:] == self.separator.bos
        return starts

    def arguments(self, starts: Tensor) -> dict[str, Any]:
        """What the model takes beside tokens: `position_ids` `[batch, seqlen]` int64, and perhaps a mask."""
        index = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
        positions = index - torch.where(starts, index, 0).cummax(1).values
        return {"position_ids": positions} | ({"attention_mask": self._mask(starts)} if self._explicit else {})

    def _mask(self, starts: Tensor) -> Tensor:
        """`[batch, 1, seqlen, seqlen]`: which tokens each one sees, as bools or as what is added to scores."""
        document = starts.cumsum(1)
        seen = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        if self._model.config._attn_implementation != "eager":
            return seen
        dtype = next(self._model.parameters()).dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    @torch.no_grad()
    def _leaks(self) -> bool:
        """Whether the second of two documents changes when the first does, or the model takes no such arguments."""
        device = next(self._model.parameters()).device
        vocabulary = self._model.get_input_embeddings().num_embeddings
        one, other = (torch.arange(8, device=device)[None] + shift for shift in (0, 4))
        other[:, 4:] = one[:, 4:]
        starts = torch.zeros_like(one, dtype=torch.bool)
        starts[:, ::4] = True
        both = torch.cat([one, other]) % vocabulary
        try:
            logits = self._model(both, use_cache=False, **self.arguments(starts.expand_as(both))).logits.float()
        except (TypeError, ValueError, RuntimeError):
            return True
        first, second = (logits[0] - logits[1]).abs().split(4)
        return bool(second.max() > _TOLERANCE * first.max())


def document_cut(model: nn.Module, settings: Learning, separator: Separator | None) -> DocumentCut | None:
    """How a run's windows are cut into documents; None where its settings do not ask for it.

    Raises:
        InputError: they do, but nobody knows what parts the documents, or the model cannot.
    """
    if not settings.cut_attention:
        return None
    if separator is None:
        raise InputError("`cut_attention` is true, but the model has no tokenizer that says what parts documents")
    return DocumentCut(model, separator)
