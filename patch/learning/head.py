"""Cross-entropy of a frozen output layer, one piece of the tokens at a time.

The logits of a whole micro-batch, tokens times vocabulary in fp32, with their softmax and gradient, are the largest
tensors of a step and pass through memory many times. A frozen layer needs none of them later, so the loss and the
gradient of the hidden states are computed at once, for a piece of the tokens that fits a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# Number of logits at a time.
PIECE = {"cpu": 1 << 20, "cuda": 1 << 27}
_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class HeadLoss(torch.autograd.Function):
    """Autograd function from hidden states to the weighted loss of a frozen output layer.

    It maps (hidden `[n, d]`, weight `[vocabulary, d]`, bias or None, targets `[n]` int64, shares `[n]` fp32) to the
    fp32 sum of shares times cross-entropies. Only the hidden states have a gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shares: Tensor):
        step = max(1, PIECE.get(hidden.device.type, PIECE["cpu"]) // len(weight))
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = shares.new_empty(len(hidden))
        for first in range(0, len(hidden), step):
            piece = slice(first, first + step)
            logits = nn.functional.linear(hidden[piece], weight, bias).float()
            wanted = targets[piece, None]
            top = logits.max(1, keepdim=True).values
            chosen = logits.gather(1, wanted)
            total = logits.sub_(top).exp_().sum(1, keepdim=True)
            losses[piece] = (total.log() + top - chosen)[:, 0]
            if gradient is not None:
                share = shares[piece, None]
                logits.mul_(share / total).scatter_add_(1, wanted, -share)
                torch.mm(logits.to(weight.dtype), weight, out=gradient[piece])
        ctx.save_for_backward(gradient)
        return (losses * shares).sum()

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * of_loss.to(gradient.dtype), None, None, None, None


def frozen_head(model: nn.Module, tokens: Tensor) -> nn.Linear | None:
    """Return the output layer of a model if it is frozen and its outputs are the logits; else None.

    Some families scale or cap logits afterwards, which a forward pass of a few ``tokens`` detects, once a model.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or any(p.requires_grad for p in head.parameters()):
        return None
    if model not in _known:
        found: list[Tensor] = []
        hook = head.register_forward_hook(lambda layer, inputs, output: found.append(output))
        with torch.no_grad():
            logits = model(tokens[:1, :2], use_cache=False).logits
        hook.remove()
        _known[model] = len(found) == 1 and logits is found[0]
    return head if _known[model] else None


@contextmanager
def hidden_states_of(head: nn.Linear) -> Iterator[None]:
    """Make a model return its last hidden states in place of the logits within the block."""
    head.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del head.forward
