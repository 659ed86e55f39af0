"""A linear layer with a masked weight, which is computed again in the backward pass.

Nothing as large as the weight stays in memory between the two passes. Within each, only a block of rows does: one that
fits the caches while it is masked, multiplied and differentiated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from patch.masks.kernels import Layer, kernel_for, products
from patch.masks.pattern import block_size


class Sink:
    """Destination of the gradients of a layer's logits, whose memory is reused from step to step.

    Attributes:
        adds: whether the next gradient is added to the one that exists.
    """

    adds = False

    @contextmanager
    def open(self, logits: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Yield the gradient to write into, and whether to add to its contents."""
        add = self.adds and logits.grad is not None
        if logits.grad is None:
            logits.grad = torch.empty_like(logits)
        yield logits.grad, add
        self.adds = True

    def gradient(self, logits: Tensor) -> Tensor:
        """Return the gradient on the device of the logits."""
        return logits.grad

    def scale(self, logits: Tensor, factor: Tensor) -> None:
        """Multiply the gradient by a 0-d tensor."""
        logits.grad.mul_(factor)


class MaskedLinear(torch.autograd.Function):
    """Autograd function of a masked linear layer.

    It maps (input, logits, tile_density, layer, bias, sink) to `input @ (mask * weight).T + bias` and the fp32
    `sum (mask * weight)^2`. ``layer`` holds the same logits and tile densities. The gradient of the logits is set in
    ``logits.grad``, or added there if ``sink.adds``, since autograd would write it twice. Therefore call `backward()`,
    not `torch.autograd.grad`. Weight and bias are frozen and get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        logits: Tensor | None,
        tile_density: Tensor | None,
        layer: Layer,
        bias: Tensor | None,
        sink: Sink,
    ):
        rows, columns = layer.weight.shape
        flat = inputs.reshape(-1, columns).contiguous()
        output = flat.new_empty(len(flat), rows)
        forward = products.forward if products.serves(layer, len(flat)) else _forward_by_rows
        norm = forward(layer, flat, output)
        if bias is not None:
            output += bias
        ctx.save_for_backward(flat)
        ctx.layer, ctx.logits, ctx.sink = layer, logits, sink
        norm = norm.float() if isinstance(norm, Tensor) else flat.new_full((), norm, dtype=torch.float32)
        return output.view(*inputs.shape[:-1], rows), norm

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_norm: Tensor):
        (flat,), layer, logits = ctx.saved_tensors, ctx.layer, ctx.logits
        rows, columns = layer.weight.shape
        grad_flat = grad_output.reshape(-1, rows).contiguous()
        grad_inputs = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        grad_density = None if layer.tile_density is None else torch.zeros_like(layer.tile_density)
        if products.serves(layer, len(flat)):
            products.backward(layer, grad_flat, flat, float(grad_norm), grad_inputs, grad_density)
        else:
            learned = ctx.needs_input_grad[1]
            with ctx.sink.open(logits) if learned else nullcontext((None, False)) as (grad_logits, add):
                _backward_by_rows(layer, grad_flat, flat, grad_norm, grad_inputs, grad_density, grad_logits, add)
        if grad_inputs is not None:
            grad_inputs = grad_inputs.view(*grad_output.shape[:-1], columns)
        return grad_inputs, None, grad_density, None, None, None


def _forward_by_rows(layer: Layer, flat: Tensor, output: Tensor) -> float | Tensor:
    """Compute what `products.forward` does, for any layer."""
    rows, columns = layer.weight.shape
    kernel, step = kernel_for(layer.weight.device, layer.weight.dtype), rows_at_a_time(layer)
    masked, norms = layer.weight.new_empty(min(step, rows), columns), []
    for first in range(0, rows, step):
        part = masked[: min(step, rows - first)]
        norms.append(kernel.forward(layer, first, part))
        torch.mm(flat, part.T, out=output[:, first : first + len(part)])
    return sum(norms[1:], norms[0])


def _backward_by_rows(
    layer: Layer,
    grad_output: Tensor,
    flat: Tensor,
    norm_gradient: Tensor,
    grad_inputs: Tensor | None,
    grad_density: Tensor | None,
    grad_logits: Tensor | None,
    add: bool,
) -> None:
    """Compute what `products.backward` does, for any layer; set the gradient of the logits, or add to it."""
    rows, columns = layer.weight.shape
    kernel, step = kernel_for(layer.weight.device, layer.weight.dtype), rows_at_a_time(layer)
    height = min(step, rows)
    masked, product = layer.weight.new_empty(height, columns), layer.weight.new_empty(height, columns)
    for first in range(0, rows, step):
        size = min(step, rows - first)
        part, grad_masked, mine = masked[:size], product[:size], grad_output[:, first : first + size]
        # The product comes first, so that one kernel masks the weights again and differentiates them.
        torch.mm(mine.T, flat, out=grad_masked)
        kept = None if grad_inputs is None else part
        kernel.backward(layer, first, grad_masked, kept, norm_gradient, grad_logits, add, grad_density)
        if grad_inputs is not None:
            # The first block overwrites, so that no zeros are needed.
            torch.addmm(grad_inputs, mine, part, beta=min(first, 1), out=grad_inputs)


def rows_at_a_time(layer: Layer) -> int:
    """Return the number of rows of a layer that are masked, multiplied and differentiated at a time."""
    rows, columns = layer.weight.shape
    return max(1, min(rows, block_size(layer.weight.device.type, layer.logits is not None) // columns))
