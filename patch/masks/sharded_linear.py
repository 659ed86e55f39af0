"""A masked linear layer that several processes hold by rows, each with its own micro-batch.

Each process holds the pattern logits of its own rows, with their gradients and moments. All processes run the same
layers at the same time. Each makes the masked weights of its own rows for every process' micro-batch, one exchange
gives each process the whole masked weight of its micro-batch, and the gradients return the same way
(`patch.masks.exchange`). So a process reads no other rows of the frozen weight, which is replicated if it fits, and
otherwise sharded with the logits (`WeightRows`). For that alone, a layer with a frozen pattern may be sharded, too.

A weight in bf16 so moves 6 bytes a micro-batch: itself in the forward pass and again in the backward pass, where it is
recomputed, and its gradient once (and itself once more where a block is recomputed). Gathering logits and scattering
their gradients instead, as fully sharded data parallelism does, moves 18: one and a half fp32 logits a weight, twice,
and their gradients.

Each process sums the gradients of its own logits in the order of the micro-batches, and products are cut into the same
blocks of rows as in `patch.masks.linear`. The results are therefore those of one process that computes the
micro-batches in turn. (Sums of squares are added in fp64 in another order; the difference is lost when they are rounded
to fp32.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patch.masks.exchange import Exchanges, Gradient, Need, ShardedLayer, blocks
from patch.masks.row_sharding import Weight


class ShardedLinear(torch.autograd.Function):
    """Autograd function with the results of `MaskedLinear` for this process' pass.

    It maps (input, logits, output of `PassEnd`, layer, weight, bias) to these. The gradients of the logits, of this
    process' own rows, are the sum over all processes. They and the gradients of the tile densities, which are this
    process', are complete when the backward pass of `PassEnd` ends.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        logits: Tensor | None,
        pass_end: Tensor,
        layer: ShardedLayer,
        weight: Weight,
        bias: Tensor | None,
    ):
        masked, layers = layer.exchanges.weight(Need(layer, weight, forward=True)), layer.layers(weight)
        rows, columns = masked.whole.shape
        flat = inputs.reshape(-1, columns)
        output = flat.new_empty(len(flat), rows)
        for block in blocks(layers[0], range(rows)):
            torch.mm(flat, masked.whole[block].T, out=output[:, block])
        if bias is not None:
            output += bias
        ctx.save_for_backward(flat)
        ctx.layer, ctx.layers, ctx.weight, ctx.logits = layer, layers, weight, logits
        return output.view(*inputs.shape[:-1], rows), masked.norms.sum().float()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_norm: Tensor):
        (flat,), layer, layers = ctx.saved_tensors, ctx.layer, ctx.layers
        assert layer.layers(ctx.weight) is layers, "another pass has begun"
        whole = layer.exchanges.weight(Need(layer, ctx.weight, forward=False)).whole
        rows, columns = whole.shape
        grad_flat, grad_inputs = grad_output.reshape(-1, rows), None
        if ctx.needs_input_grad[0]:
            grad_inputs = torch.zeros_like(flat)
            for block in blocks(layers[0], range(rows)):
                grad_inputs.addmm_(grad_flat[:, block], whole[block])
            grad_inputs = grad_inputs.view(*grad_output.shape[:-1], columns)
        # From here on the buffer holds gradients in place of weights.
        for block in blocks(layers[0], range(rows)):
            torch.mm(grad_flat[:, block].T, flat, out=whole[block])
        layer.exchanges.send(lambda: Gradient(layer, layers, ctx.logits, whole, grad_norm))
        return grad_inputs, None, None, None, None, None


class PassEnd(torch.autograd.Function):
    """Autograd identity of tensors that the layers of a model read, whose backward pass comes after that of each layer.

    It maps (exchanges, layers, tile densities of each layer or empty tensors) to the last, and finishes the gradients
    that are still in flight.
    """

    @staticmethod
    def forward(ctx: Any, exchanges: Exchanges, layers: list[ShardedLayer], *densities: Tensor):
        ctx.exchanges, ctx.layers = exchanges, layers
        return tuple(density.view_as(density) for density in densities)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        totals = dict(zip(ctx.layers, gradients, strict=True))
        for layer, gradient in ctx.exchanges.finish():
            totals[layer] = totals[layer] + gradient
        return None, None, *totals.values()
