"""Loss on text of all learned methods, and recomputed blocks that save memory.

The logits of a whole micro-batch, tokens times vocabulary in fp32, with their softmax and gradient, are the largest
tensors of a step and pass through memory many times. A frozen output layer needs none of them later, so the loss and
the gradient of the hidden states are computed at once, for a chunk of the tokens; with a small vocabulary it fits a
cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from patch.learning.document_masking import DocumentMasking
from patch.learning.loss_chunks import tokens_at_a_time
from patch.models.loading import decoder_blocks

# Cache of `frozen_output_layer`: whether a model's output layer gives its logits.
_unchanged: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def token_ids(sequences: np.ndarray, device: torch.device) -> Tensor:
    """Copy `[batch, seqlen]` token ids to a device, as int64, without waiting for the work queued there."""
    return torch.from_numpy(sequences.astype(np.int64)).to(device, non_blocking=True)


def cross_entropy(model: nn.Module, tokens: Tensor, masking: DocumentMasking | None = None) -> Tensor:
    """Return the mean next-token cross-entropy in fp32 of `[batch, seqlen]` ids.

    With ``masking`` no token attends to another document of its sequence, and none is predicted from another document.
    The loss is then the mean over sequences of their means, which does not depend on the micro-batch size.
    """
    arguments: dict[str, Tensor] = {}
    token_weights = torch.full_like(tokens[:, 1:], 1.0, dtype=torch.float32)
    if masking is not None:
        starts = masking.starts(tokens)
        arguments = masking.arguments(starts)
        token_weights = (~starts[:, 1:]).float()
    token_weights /= token_weights.sum(1, keepdim=True).clamp(min=1) * len(tokens)
    targets = tokens[:, 1:].flatten()
    layer = frozen_output_layer(model, tokens)
    if layer is None:
        logits = model(tokens, use_cache=False, **arguments).logits[:, :-1].flatten(0, 1).float()
        return (F.cross_entropy(logits, targets, reduction="none") * token_weights.flatten()).sum()
    layer.forward = lambda hidden: hidden
    try:
        hidden = model(tokens, use_cache=False, **arguments).logits[:, :-1].flatten(0, 1)
    finally:
        del layer.forward
    return ChunkedCrossEntropy.apply(hidden, layer.weight, layer.bias, targets, token_weights.flatten())


def add_gradients(
    model: nn.Module,
    micro_batches: Iterable[np.ndarray],
    count: int,
    may_stop: Callable[[], None],
    factor: float = 1.0,
) -> Tensor:
    """Add the gradients of a step's loss, micro-batch by micro-batch, and return the fp32 sum of their losses.

    Args:
        model: model whose trained parameters receive the gradients.
        micro_batches: `[sequences, seqlen]` token ids of each micro-batch of this process.
        count: number of micro-batches of the step in all processes, which the loss is the mean over.
        may_stop: called before each micro-batch; it may abandon the step.
        factor: factor of the loss; 0 for a process that repeats the micro-batches of another.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    for batch in micro_batches:
        may_stop()
        loss = factor * cross_entropy(model, token_ids(batch, device)) / count
        loss.backward()
        total += loss.detach()
    return total


class ChunkedCrossEntropy(torch.autograd.Function):
    """Autograd function from hidden states to the weighted loss of a frozen output layer.

    It maps (hidden `[n, d]`, weight `[vocabulary, d]`, bias or None, targets `[n]` int64, token weights `[n]` fp32) to
    the fp32 sum of the token weights times the cross-entropies. Only the hidden states have a gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weights: Tensor):
        step = tokens_at_a_time(hidden.device.type, len(weight))
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = token_weights.new_empty(len(hidden))
        for first in range(0, len(hidden), step):
            chunk = slice(first, first + step)
            logits = F.linear(hidden[chunk], weight, bias).float()
            wanted = targets[chunk, None]
            top = logits.max(1, keepdim=True).values
            chosen = logits.gather(1, wanted)
            total = logits.sub_(top).exp_().sum(1, keepdim=True)
            losses[chunk] = (total.log() + top - chosen)[:, 0]
            if gradient is not None:
                factor = token_weights[chunk, None]
                logits.mul_(factor / total).scatter_add_(1, wanted, -factor)
                torch.mm(logits.to(weight.dtype), weight, out=gradient[chunk])
        ctx.save_for_backward(gradient)
        return (losses * token_weights).sum()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss.to(gradient.dtype), None, None, None, None


def frozen_output_layer(model: nn.Module, tokens: Tensor) -> nn.Linear | None:
    """Return the output layer of a model if it is frozen and its outputs are the logits; else None.

    Some families scale or cap logits afterwards, which a forward pass of a few ``tokens`` detects, once for each model.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear) or any(p.requires_grad for p in layer.parameters()):
        return None
    if model not in _unchanged:
        outputs: list[Tensor] = []
        hook = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        with torch.no_grad():
            logits = model(tokens[:1, :2], use_cache=False).logits
        hook.remove()
        _unchanged[model] = len(outputs) == 1 and logits is outputs[0]
    return layer if _unchanged[model] else None


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
