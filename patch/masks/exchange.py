"""Exchange of a layer's masked weights, and of their gradients, between processes that hold its rows.

The exchanges run beside the arithmetic of other layers. While a layer computes, the masked weights of the layer that
is needed next are made and sent; the gradients of a layer arrive while the next one of the backward pass computes, and
are differentiated after it. The order of the layers, forward and backward and with recomputed blocks, is that of the
last pass. Masks are made on the stream of the arithmetic, since both need the whole processor. On a GPU the exchange
alone is concurrent: NCCL has a stream of its own, which waits for the work before a collective, and `Work.wait` lets
the arithmetic wait for the collective, not the host. Buffers are referenced until then, so the allocator cannot reuse
them.

Apart from the logits' gradients, at most six buffers of a layer's size exist at once, all in the type of the weight: in
the backward pass, what is sent and what is received for the layer that computes and for those before and after it. The
probabilities of the patterns are computed again for the gradients, a block at a time; to keep them for three layers
would take nine more buffers of a bf16 weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from patch.distributed.collectives import start_exchange
from patch.masks.kernels import Layer, kernel_for
from patch.masks.linear import Sink, rows_at_a_time
from patch.masks.row_sharding import RowSharding, Weight


class ShardedLayer:
    """A layer of which this process holds some rows, in the current passes of all processes.

    Attributes:
        sharding: rows of each process.
        exchanges: exchanges of the model that the layer belongs to.
        sink: destination of the gradients of the logits.
    """

    def __init__(self, sharding: RowSharding, exchanges: Exchanges, sink: Sink) -> None:
        self.sharding, self.exchanges, self.sink = sharding, exchanges, sink
        self._passes: Sequence[Callable[..., Layer]] = ()
        self._layers: list[Layer] = []

    def begin(self, passes: Sequence[Callable[..., Layer]]) -> None:
        """Set the passes of all processes, in order: functions that make the layer from its ``weight``."""
        assert len(passes) == len(self.sharding.row_counts), "the passes of all processes"
        self._passes, self._layers = passes, []

    def layers(self, weight: Weight) -> list[Layer]:
        """Return the layer in the current pass of each process: the same list until another pass begins."""
        if not self._layers or self._layers[0].weight is not weight:
            self._layers = [make(weight=weight) for make in self._passes]
        return self._layers


class Need(NamedTuple):
    """Need of a layer's masked weight at one point of a pass.

    Attributes:
        layer: the layer.
        weight: its frozen weight, `[out, in]`.
        forward: whether a forward pass needs it, with the norms; otherwise a backward pass, which overwrites it.
    """

    layer: ShardedLayer
    weight: Weight
    forward: bool

    def equals(self, other: Need) -> bool:
        """Return whether both are of the same objects."""
        return all(mine is its for mine, its in zip(self, other, strict=True))


class MaskedWeight:
    """Masked weight of a layer for this process' pass, on its way from the processes that hold the rows.

    Attributes:
        whole: `[out, in]` of the weight's type, complete after `wait`.
        norms: `[processes]` fp64, sums of the squares of each process' rows, complete after `wait`; for forward passes.
    """

    def __init__(self, need: Need) -> None:
        """Make the masked weights of this process' rows for all passes, and start to send them."""
        layers, sharding = need.layer.layers(need.weight), need.layer.sharding
        made, norms = _make(layers, sharding)
        self.whole, self.norms = made.new_empty(layers[0].weight.shape), torch.empty_like(norms)
        own, ones = [len(sharding.own)] * len(layers), [1] * len(layers)
        # The small one first, since collectives run in order.
        self._works = [start_exchange(self.norms, norms, ones, ones)] if need.forward else []
        self._works.append(start_exchange(self.whole, made.flatten(0, 1), sharding.row_counts, own))
        self._sent = (made, norms)

    def wait(self) -> None:
        """Wait until the weight is complete, and release what was sent."""
        for work in self._works:
            work.wait()
        self._works, self._sent = [], ()


class Gradient:
    """Gradient of a layer's masked weight in this process' pass, on its way to the processes that hold the rows."""

    def __init__(self, layer: ShardedLayer, layers: list[Layer], logits: Tensor | None, whole: Tensor, norm: Tensor):
        """Start to send the gradient ``whole``, `[out, in]`, and that of the sum of squares, a 0-d fp32 ``norm``."""
        sharding, count = layer.sharding, len(layers)
        self.layer, self._layers, self._logits = layer, layers, logits
        self._received = whole.new_empty(count, len(sharding.own), whole.shape[1])
        sent, self._norms = norm.repeat(count), norm.new_empty(count)
        own = [len(sharding.own)] * count
        self._works = [
            start_exchange(self._norms, sent, [1] * count, [1] * count),
            start_exchange(self._received.flatten(0, 1), whole, own, sharding.row_counts),
        ]
        self._sent = (whole, sent)

    def finish(self) -> DensityGradient | None:
        """Wait for the gradients of all passes and add them to that of the logits; start to send the densities'."""
        for work in self._works:
            work.wait()
        self._works, self._sent = [], ()
        density = self._layers[0].tile_density
        found = None if density is None else density.new_zeros(len(self._layers), *density.shape)
        learned = self._logits is not None
        with self.layer.sink.open(self._logits) if learned else nullcontext((None, False)) as (grad_logits, add):
            for number, layer in enumerate(self._layers):
                grad_density = None if found is None else found[number]
                self._differentiate(number, layer, grad_logits, add or number > 0, grad_density)
        return None if found is None else DensityGradient(found, self._layers[0], self.layer.sharding)

    def _differentiate(
        self, number: int, layer: Layer, grad_logits: Tensor | None, add: bool, grad_density: Tensor | None
    ) -> None:
        """Differentiate the masked weights of this process' rows in one process' pass."""
        kernel, start, norm = _kernel(layer), self.layer.sharding.own.start, self._norms[number]
        for block in blocks(layer, self.layer.sharding.own):
            gradient = self._received[number, block.start - start : block.stop - start]
            kernel.backward(layer, block.start, gradient, None, norm, grad_logits, add, grad_density)


class DensityGradient:
    """Gradient of the tile densities of this process' pass, on its way from the processes that hold the rows."""

    def __init__(self, found: Tensor, layer: Layer, sharding: RowSharding) -> None:
        """Start to send the tiles of this process' rows in ``found``, `[processes, tiles, tiles]` fp32."""
        height, own, count = layer.tile[0], sharding.own, len(found)
        sent = found[:, own.start // height : own.stop // height].flatten(0, 1).contiguous()
        received_counts = [rows // height for rows in sharding.row_counts]
        self._received, self._sent = torch.empty_like(found[0]), sent
        self._work: dist.Work = start_exchange(self._received, sent, received_counts, [len(own) // height] * count)

    def wait(self) -> Tensor:
        """Return the gradient, `[tiles along out, tiles along in]` fp32."""
        self._work.wait()
        return self._received


class Exchanges:
    """Exchanges of a model's layers, at the same points in all processes.

    While a layer computes, at most two exchanges are in flight: that of the weight that was needed next at this point
    of the last pass, and that of the gradients of the last layer of the backward pass. Before a pass begins, none is.
    A weight that was sent ahead but is not the one needed is dropped, and nothing more is sent ahead in this pass.
    """

    def __init__(self) -> None:
        self._order: list[Need] = []
        self._needs: list[Need] = []
        self._known = True
        self._ahead: MaskedWeight | None = None
        self._gradient: Gradient | None = None
        self._densities: list[tuple[ShardedLayer, DensityGradient]] = []

    def begin(self) -> None:
        """Begin a pass, whose order is expected to be that of the last one."""
        assert self._gradient is None, "the last backward pass has ended early"
        self._drop()
        if self._needs:
            self._order, self._needs = self._needs, []
        self._known = True

    def weight(self, need: Need) -> MaskedWeight:
        """Return the complete masked weight, after the next one has been made and its exchange started."""
        position = len(self._needs)
        self._needs.append(need)
        self._known = self._known and position < len(self._order) and self._order[position].equals(need)
        if not self._known:
            self._drop()
        found, self._ahead = self._ahead or MaskedWeight(need), None
        if self._known and position + 1 < len(self._order):
            following = self._order[position + 1]
            # The backward pass of a layer may follow its forward pass. Only a backward pass overwrites the weight.
            again = need.forward and following.layer is need.layer and following.weight is need.weight
            self._ahead = found if again else MaskedWeight(following)
        found.wait()
        return found

    def send(self, gradient: Callable[[], Gradient]) -> None:
        """Finish the gradients that are in flight, and start the exchange of others."""
        self._finish_gradient()
        self._gradient = gradient()

    def finish(self) -> list[tuple[ShardedLayer, Tensor]]:
        """Finish all gradients of a backward pass; return those of the tile densities, each with its layer."""
        self._finish_gradient()
        found, self._densities = self._densities, []
        return [(layer, gradient.wait()) for layer, gradient in found]

    def _finish_gradient(self) -> None:
        if self._gradient is not None:
            gradient, self._gradient = self._gradient, None
            density = gradient.finish()
            if density is not None:
                self._densities.append((gradient.layer, density))

    def _drop(self) -> None:
        if self._ahead is not None:
            self._ahead.wait()
            self._ahead = None


def blocks(layer: Layer, rows: range) -> Iterator[slice]:
    """Yield ``rows`` of a layer in blocks that end where those of a single process do."""
    first, step = rows.start, rows_at_a_time(layer)
    while first < rows.stop:
        last = min(rows.stop, (first // step + 1) * step)
        yield slice(first, last)
        first = last


def _kernel(layer: Layer) -> ModuleType:
    return kernel_for(layer.weight.device, layer.weight.dtype)


def _make(layers: list[Layer], sharding: RowSharding) -> tuple[Tensor, Tensor]:
    """Return the masked weights of this process' rows and the sums of their squares, for all processes' passes.

    They are `[processes, own rows, in]` of the weight's type and `[processes]` fp64.
    """
    weight, start = layers[0].weight, sharding.own.start
    sizes = len(layers), len(sharding.own), weight.shape[1]
    made = torch.empty(sizes, dtype=weight.dtype, device=weight.device)
    norms = torch.zeros(len(layers), dtype=torch.float64, device=weight.device)
    for number, layer in enumerate(layers):
        for block in blocks(layer, sharding.own):
            masked = made[number, block.start - start : block.stop - start]
            norms[number] += _kernel(layer).forward(layer, block.start, masked)
    return made, norms
