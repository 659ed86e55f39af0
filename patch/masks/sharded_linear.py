"""Row sharding: a masked linear layer whose pattern logits several processes hold, each with its own micro-batch.

Frozen weights are replicated. Each process holds the logits of its own rows, with their gradients and moments. All
processes run the same layers at the same time. Each makes the masked weights of its own rows for every process'
micro-batch, one exchange gives each process the whole masked weight of its micro-batch, and the gradients return the
same way. A weight in bf16 so moves 6 bytes a micro-batch: itself in the forward pass and again in the backward pass,
where it is recomputed, and its gradient once (and itself once more where a block is recomputed). Gathering logits and
scattering their gradients instead, as fully sharded data parallelism does, moves 18: one and a half fp32 logits a
weight, twice, and their gradients.

Each process sums the gradients of its own logits in the order of the micro-batches, and products are cut into the same
blocks of rows as in `patch.masks.linear`. The results are therefore those of one process that computes the
micro-batches in turn. (Sums of squares are added in fp64 in another order; the difference is lost when they are rounded
to fp32.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from patch.distributed.collectives import exchange_rows, gathered
from patch.masks.kernels import Layer, kernel_for
from patch.masks.linear import Sink, rows_at_a_time


@dataclass(frozen=True)
class RowSharding:
    """Row sharding of a layer: the rows of each process, in order; some may have none.

    Attributes:
        bounds: first rows of the processes and the end of the last, one number more than there are processes.
        rank: number of this process.
    """

    bounds: tuple[int, ...]
    rank: int

    @property
    def row_counts(self) -> list[int]:
        """Number of rows of each process."""
        return [stop - start for start, stop in pairwise(self.bounds)]

    @property
    def own(self) -> range:
        """Rows of this process."""
        return range(self.bounds[self.rank], self.bounds[self.rank + 1])


def shard_rows(rows: int, unit: int, processes: int, rank: int, turn: int = 0) -> RowSharding:
    """Shard rows as evenly as whole units allow.

    Args:
        rows: number of rows of the layer; ``unit`` divides it.
        unit: number of rows that stay together, such as those of a tile.
        processes: number of processes.
        rank: number of this process.
        turn: number of the layer; the processes that get a unit more change with it.
    """
    assert rows % unit == 0, (rows, unit)
    units, shift = rows // unit, turn % processes
    bounds = [(number * units + shift) // processes * unit for number in range(processes + 1)]
    return RowSharding(tuple(bounds), rank)


class ShardedLinear(torch.autograd.Function):
    """Autograd function with the results of `MaskedLinear` for this process' pass.

    It maps (input, logits, tile densities, layers, sharding, bias, sink) to these. ``layers`` has an entry for each
    process, in order: the layer with that process' noise and tile densities, and with the logits of this process' own
    rows. Logits, tile densities and gradients are this process', as for `MaskedLinear`, but the gradient of the logits
    is the sum over all processes for the own rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        logits: Tensor,
        tile_density: Tensor | None,
        layers: list[Layer],
        sharding: RowSharding,
        bias: Tensor | None,
        sink: Sink,
    ):
        rows, columns = layers[0].weight.shape
        flat = inputs.reshape(-1, columns)
        buffers = _Buffers(layers, sharding)
        norms = buffers.make_weights(None)
        pass_norms = torch.empty_like(norms)
        exchange_rows(pass_norms, norms, [1] * len(norms), [1] * len(norms))
        buffers.to_passes()
        output = flat.new_empty(len(flat), rows)
        for block in buffers.blocks(range(rows)):
            torch.mm(flat, buffers.whole[block].T, out=output[:, block])
        if bias is not None:
            output += bias
        ctx.save_for_backward(flat)
        ctx.layers, ctx.sharding, ctx.logits, ctx.sink = layers, sharding, logits, sink
        return output.view(*inputs.shape[:-1], rows), pass_norms.sum().float()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_norm: Tensor):
        (flat,), layers, sharding = ctx.saved_tensors, ctx.layers, ctx.sharding
        rows, columns = layers[0].weight.shape
        buffers = _Buffers(layers, sharding)
        probabilities = layers[0].logits.new_empty(len(layers), 6 * len(sharding.own) * (columns // 4))
        buffers.make_weights(probabilities)
        grad_flat, grad_inputs = grad_output.reshape(-1, rows), None
        if ctx.needs_input_grad[0]:
            buffers.to_passes()
            grad_inputs = torch.zeros_like(flat)
            for block in buffers.blocks(range(rows)):
                grad_inputs.addmm_(grad_flat[:, block], buffers.whole[block])
            grad_inputs = grad_inputs.view(*grad_output.shape[:-1], columns)
        # From here on the buffers hold gradients in place of weights.
        for block in buffers.blocks(range(rows)):
            torch.mm(grad_flat[:, block].T, flat, out=buffers.whole[block])
        buffers.to_processes()
        grad_norms = torch.stack(gathered(grad_norm)).tolist()
        grad_density = buffers.differentiate(probabilities, grad_norms, ctx.logits, ctx.sink)
        return grad_inputs, None, grad_density, None, None, None, None


class _Buffers:
    """Buffers of a layer's masked weights, and then of their gradients.

    Attributes:
        whole: `[out, in]`, for this process' pass.
        own: `[processes, own rows, in]`, for all processes' passes.
    """

    def __init__(self, layers: list[Layer], sharding: RowSharding) -> None:
        weight = layers[0].weight
        self.layers, self.sharding = layers, sharding
        self.whole = torch.empty_like(weight)
        self.own = weight.new_empty(len(layers), len(sharding.own), weight.shape[1])
        self._own_counts = [len(sharding.own)] * len(layers)
        self._kernel, self._step = kernel_for(weight.device, weight.dtype), rows_at_a_time(layers[0])

    def blocks(self, rows: range) -> Iterator[slice]:
        """Yield ``rows`` in blocks that end where those of a single process do."""
        first = rows.start
        while first < rows.stop:
            last = min(rows.stop, (first // self._step + 1) * self._step)
            yield slice(first, last)
            first = last

    def _own_blocks(self, number: int, probabilities: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield the first row of each block of own rows, its part of ``own[number]``, and its probabilities, if kept.

        The probabilities of a block are `[6, rows, in / 4]`.
        """
        groups, start = self.own.shape[2] // 4, self.sharding.own.start
        for block in self.blocks(self.sharding.own):
            first, last = block.start - start, block.stop - start
            kept = None
            if probabilities is not None:
                kept = probabilities[number, 6 * groups * first : 6 * groups * last].view(6, last - first, groups)
            yield block.start, self.own[number, first:last], kept

    def make_weights(self, probabilities: Tensor | None) -> Tensor:
        """Fill ``own`` with masked weights; return the sums of their squares, one a pass, in fp64."""
        norms = torch.zeros(len(self.layers), dtype=torch.float64, device=self.own.device)
        for number, layer in enumerate(self.layers):
            for row, masked, kept in self._own_blocks(number, probabilities):
                norms[number] += self._kernel.forward(layer, row, masked, kept)
        return norms

    def to_passes(self) -> None:
        """Send every process the rows that this one has made for it: ``own`` of all -> ``whole``."""
        exchange_rows(self.whole, self.own.flatten(0, 1), self.sharding.row_counts, self._own_counts)

    def to_processes(self) -> None:
        """Send every process its own rows of this process' pass: ``whole`` of all -> ``own``."""
        exchange_rows(self.own.flatten(0, 1), self.whole, self._own_counts, self.sharding.row_counts)

    def differentiate(
        self, probabilities: Tensor, grad_norms: list[float], logits: Tensor, sink: Sink
    ) -> Tensor | None:
        """Add the gradients in ``own`` to those of the logits; return that of this process' tile densities."""
        density = self.layers[0].tile_density
        grad_density = None if density is None else density.new_zeros(len(self.layers), *density.shape)
        for number, layer in enumerate(self.layers):
            grad_logits, add = sink.open(logits)
            mine = None if grad_density is None else grad_density[number]
            for row, gradient, kept in self._own_blocks(number, probabilities):
                self._kernel.backward(layer, row, gradient, kept, grad_norms[number], grad_logits, add, mine)
        if grad_density is None:
            return None
        # Exchange the own rows of `[processes, tiles, tiles]` for `[tiles, tiles]` of this process' pass.
        height, own = self.layers[0].tile[0], self.sharding.own
        sent = grad_density[:, own.start // height : own.stop // height].flatten(0, 1).contiguous()
        received = torch.empty_like(grad_density[0])
        row_counts = [rows // height for rows in self.sharding.row_counts]
        exchange_rows(received, sent, row_counts, [len(own) // height] * len(self.layers))
        return received
