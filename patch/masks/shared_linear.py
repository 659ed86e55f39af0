"""A masked linear layer whose pattern logits are sharded by rows; each process computes a micro-batch of its own.

Frozen weights are replicated. Each process holds the logits of its own rows, with their gradients and moments.
All processes run the same layers at the same time. The owner of rows makes their masked weights for every process'
micro-batch, one exchange gives each process the whole masked weight of its own, and the gradients return the same
way. A weight in bf16 so moves 6 bytes a micro-batch: itself in the forward pass and again in the backward pass, where
it is recomputed, and its gradient once (and itself once more where a block is recomputed). Gathering logits and
scattering their gradients instead, as fully sharded data parallelism does, moves 18: one and a half fp32 logits a
weight, twice, and their gradients.

An owner sums the gradients of its logits in the order of the micro-batches, and products are cut into the same blocks
of rows as in `patch.masks.linear`. The results are therefore those of one process that computes the micro-batches in
turn. (Sums of squares are added in fp64 in another order; the difference is lost when they are rounded to fp32.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from patch.distributed.collectives import exchange_rows, gathered
from patch.masks.kernels import Layer, kernel_for
from patch.masks.linear import Sink, rows_at_a_time
from patch.masks.owners import Owners


class SharedLinear(torch.autograd.Function):
    """Autograd function with the results of `MaskedLinear` for this process' pass.

    It maps (input, logits, shares, layers, owners, bias, sink) to these. ``layers`` has an entry for each process, in
    order: the layer with that process' noise and tile shares, and with the logits of this process' own rows. Logits,
    shares and gradients are this process', as for `MaskedLinear`, but the gradient of the logits is the sum over all
    processes for the own rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        logits: Tensor,
        shares: Tensor | None,
        layers: list[Layer],
        owners: Owners,
        bias: Tensor | None,
        sink: Sink,
    ):
        rows, columns = layers[0].weight.shape
        flat = inputs.reshape(-1, columns)
        room = _Room(layers, owners)
        norms = room.make_weights(None)
        of_rows = torch.empty_like(norms)
        exchange_rows(of_rows, norms, [1] * len(norms), [1] * len(norms))
        room.to_passes()
        output = flat.new_empty(len(flat), rows)
        for block in room.blocks(range(rows)):
            torch.mm(flat, room.whole[block].T, out=output[:, block])
        if bias is not None:
            output += bias
        ctx.save_for_backward(flat)
        ctx.layers, ctx.owners, ctx.logits, ctx.sink = layers, owners, logits, sink
        return output.view(*inputs.shape[:-1], rows), of_rows.sum().float()

    @staticmethod
    def backward(ctx: Any, of_output: Tensor, of_norm: Tensor):
        (flat,), layers, owners = ctx.saved_tensors, ctx.layers, ctx.owners
        rows, columns = layers[0].weight.shape
        room = _Room(layers, owners)
        probabilities = layers[0].logits.new_empty(len(layers), 6 * len(owners.own) * (columns // 4))
        room.make_weights(probabilities)
        of_flat, of_inputs = of_output.reshape(-1, rows), None
        if ctx.needs_input_grad[0]:
            room.to_passes()
            of_inputs = torch.zeros_like(flat)
            for block in room.blocks(range(rows)):
                of_inputs.addmm_(of_flat[:, block], room.whole[block])
            of_inputs = of_inputs.view(*of_output.shape[:-1], columns)
        # From here on the buffers hold gradients in place of weights.
        for block in room.blocks(range(rows)):
            torch.mm(of_flat[:, block].T, flat, out=room.whole[block])
        room.to_owners()
        of_norms = torch.stack(gathered(of_norm)).tolist()
        of_shares = room.differentiate(probabilities, of_norms, ctx.logits, ctx.sink)
        return of_inputs, None, of_shares, None, None, None, None


class _Room:
    """Buffers of a layer's masked weights, and then of their gradients.

    Attributes:
        whole: `[out, in]`, for this process' pass.
        own: `[processes, own rows, in]`, for all processes' passes.
    """

    def __init__(self, layers: list[Layer], owners: Owners) -> None:
        weight = layers[0].weight
        self.layers, self.owners = layers, owners
        self.whole = torch.empty_like(weight)
        self.own = weight.new_empty(len(layers), len(owners.own), weight.shape[1])
        self._kernel, self._step = kernel_for(weight.device, weight.dtype), rows_at_a_time(layers[0])

    def blocks(self, rows: range) -> Iterator[slice]:
        """Yield ``rows`` in blocks that end where those of a single process do."""
        first = rows.start
        while first < rows.stop:
            last = min(rows.stop, (first // self._step + 1) * self._step)
            yield slice(first, last)
            first = last

    def make_weights(self, probabilities: Tensor | None) -> Tensor:
        """Fill ``own`` with masked weights; return the sums of their squares, one a pass, in fp64."""
        norms = torch.zeros(len(self.layers), dtype=torch.float64, device=self.own.device)
        for number, layer in enumerate(self.layers):
            for block in self.blocks(self.owners.own):
                part = self.own[number, self._here(block)]
                norms[number] += self._kernel.forward(
                    layer, block.start, part, self._kept(probabilities, number, block)
                )
        return norms

    def to_passes(self) -> None:
        """Send every process the rows that this one has made for it: ``own`` of all -> ``whole``."""
        exchange_rows(self.whole, self.own.flatten(0, 1), self.owners.heights, [self.own.shape[1]] * len(self.layers))

    def to_owners(self) -> None:
        """Send every owner its rows of this process' pass: ``whole`` of all -> ``own``."""
        exchange_rows(self.own.flatten(0, 1), self.whole, [self.own.shape[1]] * len(self.layers), self.owners.heights)

    def differentiate(self, probabilities: Tensor, of_norms: list[float], logits: Tensor, sink: Sink) -> Tensor | None:
        """Add the gradients in ``own`` to those of the logits; return that of the shares of this process' pass."""
        shares = self.layers[0].shares
        of_shares = None if shares is None else shares.new_zeros(len(self.layers), *shares.shape)
        for number, layer in enumerate(self.layers):
            of_logits, add = sink.open(logits)
            for block in self.blocks(self.owners.own):
                self._kernel.backward(
                    layer,
                    block.start,
                    self.own[number, self._here(block)],
                    self._kept(probabilities, number, block),
                    of_norms[number],
                    of_logits,
                    add,
                    None if of_shares is None else of_shares[number],
                )
        return None if of_shares is None else self._share_gradients(of_shares)

    def _share_gradients(self, of_shares: Tensor) -> Tensor:
        """Exchange the own rows of `[processes, tiles, tiles]` for `[tiles, tiles]` of this process' pass."""
        height, own = self.layers[0].tile[0], self.owners.own
        mine = of_shares[:, own.start // height : own.stop // height].flatten(0, 1).contiguous()
        found = torch.empty_like(of_shares[0])
        by_owner = [rows // height for rows in self.owners.heights]
        exchange_rows(found, mine, by_owner, [len(own) // height] * len(self.layers))
        return found

    def _here(self, block: slice) -> slice:
        return slice(block.start - self.owners.own.start, block.stop - self.owners.own.start)

    def _kept(self, probabilities: Tensor | None, number: int, block: slice) -> Tensor | None:
        """Return the buffer of a block's probabilities, `[6, rows, in / 4]`; None if they are not kept."""
        if probabilities is None:
            return None
        groups, here = self.own.shape[2] // 4, self._here(block)
        stretch = probabilities[number, 6 * groups * here.start : 6 * groups * here.stop]
        return stretch.view(6, here.stop - here.start, groups)
