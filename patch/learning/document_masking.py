"""Attention within documents: positions and masks that keep the documents of a sequence apart, for any model family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from patch.data.tokenization import Separator
from patch.errors import InputError

# Tolerance for rounding: the change in one document over the change in the document before it; 0 is expected.
_TOLERANCE = 1e-3


class DocumentMasking:
    """Model inputs beside tokens that keep every token from attending to another document of its sequence.

    Positions start again with each document. From these alone transformers derives the masks of most families, those of
    sliding layers too; where it does not, as in OPT, an explicit mask is passed. The constructor tests which of the two
    works.

    Args:
        model: causal language model; does three short forward passes at most.
        separator: the tokens that separate the documents of the sequences; None if they are unknown.

    Raises:
        InputError: neither works for the model, or there is no separator.
    """

    def __init__(self, model: nn.Module, separator: Separator | None) -> None:
        if separator is None:
            raise InputError(
                "`cut_attention` is true, but the model has no tokenizer that defines the separator of documents"
            )
        self.separator = separator
        self._model = model
        self._explicit = False
        if self._leaks():
            # An explicit mask would replace that of a sliding layer.
            self._explicit = getattr(model.config.get_text_config(), "sliding_window", None) is None
            if not self._explicit or self._leaks():
                raise InputError(
                    f"`cut_attention` is true, but {type(model).__name__} supports no positions that separate the "
                    "documents of a sequence; set it to false"
                )

    def starts(self, tokens: Tensor) -> Tensor:
        """Return the starts of documents: `[batch, seqlen]` ids -> as many bools, the first of each row true.

        A piece of a document at the start of a sequence counts as a document.
        """
        starts = torch.ones_like(tokens, dtype=torch.bool)
        starts[:, 1:] = tokens[:, :-1] == self.separator.eos
        if self.separator.bos is not None:
            # Some tokenizers have one token for both ends.
            starts[:, 1:] &= tokens[:, 1:] == self.separator.bos
        return starts

    def arguments(self, starts: Tensor) -> dict[str, Any]:
        """Return the model's inputs beside tokens: `position_ids` `[batch, seqlen]` int64, and a mask if needed."""
        index = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
        positions = index - torch.where(starts, index, 0).cummax(1).values
        return {"position_ids": positions} | ({"attention_mask": self._mask(starts)} if self._explicit else {})

    def _mask(self, starts: Tensor) -> Tensor:
        """Return the attention mask, `[batch, 1, seqlen, seqlen]`, as bools or as terms of the scores."""
        document = starts.cumsum(1)
        seen = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        if self._model.config._attn_implementation != "eager":
            return seen
        dtype = next(self._model.parameters()).dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    @torch.no_grad()
    def _leaks(self) -> bool:
        """Return whether the second of two documents depends on the first, or the model rejects these inputs."""
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
