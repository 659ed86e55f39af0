"""What every kind of learning does with a model: its loss on text, and blocks that run again to save memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from patch.models import decoder_blocks


def cross_entropy(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy in fp32 of `[batch, seqlen]` ids."""
    logits = model(tokens, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


@contextmanager
def recomputed_blocks(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Within the block, decoder blocks keep only their inputs for the backward pass and run again in it.

    By structure, and in evaluation mode: a family's own way needs training mode, which turns dropout on.
    """
    blocks = list(decoder_blocks(model)[1]) if enabled else []
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
