"""Functions that all kinds of learning use: the loss on text, and recomputed blocks that save memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from patch.learning.documents import DocumentCut
from patch.learning.head import HeadLoss, frozen_head, hidden_states_of
from patch.models.loading import decoder_blocks


def cross_entropy(model: nn.Module, tokens: Tensor, cut: DocumentCut | None = None) -> Tensor:
    """Return the mean next-token cross-entropy in fp32 of `[batch, seqlen]` ids.

    With ``cut`` no token attends to another document of its sequence, and none is predicted from another document.
    The loss is then the mean over sequences of their means, which does not depend on the micro-batch size.
    """
    starts = None if cut is None else cut.starts(tokens)
    arguments = {} if cut is None else cut.arguments(starts)
    shares = torch.full_like(tokens[:, 1:], 1.0, dtype=torch.float32)
    if starts is not None:
        shares = (~starts[:, 1:]).float()
    shares /= shares.sum(1, keepdim=True).clamp(min=1) * len(tokens)
    targets = tokens[:, 1:].flatten()
    head = frozen_head(model, tokens)
    if head is None:
        logits = model(tokens, use_cache=False, **arguments).logits[:, :-1].flatten(0, 1).float()
        return (F.cross_entropy(logits, targets, reduction="none") * shares.flatten()).sum()
    with hidden_states_of(head):
        hidden = model(tokens, use_cache=False, **arguments).logits[:, :-1].flatten(0, 1)
    return HeadLoss.apply(hidden, head.weight, head.bias, targets, shares.flatten())


@contextmanager
def recomputed_blocks(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Recompute decoder blocks in the backward pass within the block, so that only their inputs are kept for it.

    This wraps the modules in evaluation mode: a family's own checkpointing needs training mode, which enables dropout.
    """
    blocks = list(decoder_blocks(model)[1]) if enabled else []
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
