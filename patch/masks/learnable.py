"""Learnable masks of one linear layer: a 2:4 pattern per group of four, and dense or sparse per tile.

A group's pattern is drawn by Gumbel-softmax over six logits, a tile's state over its one logit and
zero (MaskLLM, arXiv 2409.17481; PATCH, arXiv 2509.23410).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from patch.distributed.collectives import broadcast_rows
from patch.masks.exchange import Exchanges, ShardedLayer
from patch.masks.kernels import Layer, Sampling
from patch.masks.kernels.eager import PATTERNS, pack_bits, unpack_bits
from patch.masks.linear import MaskedLinear, Sink
from patch.masks.noise import TILES, logistic_noise, noise_keys, places
from patch.masks.row_sharding import RowSharding, Weight
from patch.masks.sharded_linear import PassEnd, ShardedLinear
from patch.masks.tile import tile_shape

__all__ = ["LearnableMask", "Sampling", "sample_tiles"]


def sample_tiles(logits: Tensor, sampling: Sampling, noise: Tensor) -> Tensor:
    """Return the Gumbel-softmax of `[P, 0]`, first component: the dense fraction of each tile, of the logits' shape.

    The difference of two Gumbel variables is logistic, so one logistic ``noise`` suffices.
    """
    soft = torch.sigmoid((sampling.scale * logits + noise) / sampling.temperature)
    return soft + ((soft > 0.5).to(soft.dtype) - soft).detach() if sampling.hard else soft


class LearnableMask(nn.Module):
    """Learnable mask of one linear layer.

    Args:
        shape: `[out, in]` of the weight.
        pattern_logits: `[6, out * in / 4]` fp32, or None for a frozen pattern. A group's six logits lie a row apart,
            so that sums over them run along rows, which suits vector units. With ``sharding``, these are the logits of
            this process' own rows: `[6, own rows * in / 4]`.
        frozen: `[out, in]` bool mask of the sparse tiles, if there are no pattern logits; kept as a bit a weight.
        tile_logits: `[out / tile, in / tile]` fp32, or None if every tile is sparse.
        tile: side of a tile.
        sharding: row sharding of the layer, or None if this process computes its masks alone. Otherwise all processes
            must make the same calls on their masks at the same time.
        exchanges: exchanges of the model, which all its sharded masks share; by default the mask's own.
        sink: destination of the gradients of the pattern logits, by default their ``grad``.
    """

    def __init__(
        self,
        shape: torch.Size,
        pattern_logits: Tensor | None,
        frozen: Tensor | None,
        tile_logits: Tensor | None,
        tile: int | None,
        sharding: RowSharding | None = None,
        exchanges: Exchanges | None = None,
        sink: Sink | None = None,
    ) -> None:
        super().__init__()
        assert (pattern_logits is None) != (frozen is None)
        assert tile is None or tile_shape(shape, tile)[1] % 4 == 0
        assert sharding is None or frozen is not None or pattern_logits.shape[1] == len(sharding.own) * shape[1] // 4
        self.shape, self.tile, self.sharding = shape, tile, sharding
        self.pattern_logits = None if pattern_logits is None else nn.Parameter(pattern_logits)
        self.tile_logits = None if tile_logits is None else nn.Parameter(tile_logits)
        self.register_buffer("bits", None if frozen is None else pack_bits(frozen), persistent=False)
        self.pattern_sampling = self.tile_sampling = Sampling(1.0, 1.0)
        self.keys = (0, 0)
        self._sink = sink or Sink()
        self._layer: Layer | None = None
        self._sharded = ShardedLayer(sharding, exchanges or Exchanges(), self._sink) if sharding else None
        self._pass_end: Tensor | None = None
        self.tile_density: Tensor | None = None
        self.kept_norm: Tensor | None = None

    def linear(self, inputs: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        """Return `inputs @ (mask * weight).T + bias`, and set ``kept_norm`` of this pass to `sum (mask * weight)^2`.

        With sharding only the own rows of ``weight`` are read.
        """
        logits, tile_density = self.pattern_logits, self.tile_density
        if self._sharded is not None:
            output, kept_norm = ShardedLinear.apply(inputs, logits, self._pass_end, self._sharded, weight, bias)
            self._set_kept_norm(kept_norm)
            return output
        # The forward pass may run more than once, for example when a block is recomputed.
        if self._layer is None or self._layer.weight.data_ptr() != weight.data_ptr():
            self._layer = self._in_pass(self.keys, tile_density)(weight=weight.detach())
        output, kept_norm = MaskedLinear.apply(inputs, logits, tile_density, self._layer, bias, self._sink)
        self._set_kept_norm(kept_norm)
        return output

    def _set_kept_norm(self, kept_norm: Tensor) -> None:
        # That of a block that is recomputed in the backward pass would keep all activations of the block in memory.
        if self.kept_norm is None or not self.kept_norm.requires_grad:
            self.kept_norm = kept_norm

    def _in_pass(self, keys: tuple[int, int], tile_density: Tensor | None) -> partial[Layer]:
        """Return a function that makes the layer of a pass from its ``weight``."""
        return partial(
            Layer,
            logits=None if self.pattern_logits is None else self.pattern_logits.detach(),
            bits=self.bits,
            tile_density=None if tile_density is None else tile_density.detach().contiguous(),
            tile=(1, 4) if tile_density is None else tile_shape(self.shape, self.tile),
            sampling=self.pattern_sampling,
            keys=keys,
            first_row=0 if self.sharding is None else self.sharding.own.start,
        )

    @property
    def device(self) -> torch.device:
        """Device of the mask."""
        return (self.bits if self.pattern_logits is None else self.pattern_logits).device

    def forget_gradients(self) -> None:
        """Make the next backward pass start from zero gradients; their memory is reused."""
        self._sink.adds = False
        if self.tile_logits is not None:
            self.tile_logits.grad = None

    def pattern_gradient(self) -> Tensor:
        """Return the gradient of the pattern logits, on their device."""
        return self._sink.gradient(self.pattern_logits)

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply all gradients by a 0-d tensor."""
        if self.pattern_logits is not None:
            self._sink.scale(self.pattern_logits, factor)
        if self.tile_logits is not None:
            self.tile_logits.grad.mul_(factor)

    def density(self) -> Tensor:
        """Return the layer's expected density in this pass: `1/2 + 1/2 * mean(t)`, as a soft 2:4 group sums to two.

        The value is exact in fp32 on the tile grid; for 2:4 without tiles it is 1/2.
        """
        if self.tile_density is None:
            return torch.full((), 0.5, device=self.device)
        return 0.5 + 0.5 * self.tile_density.mean()

    @torch.no_grad()
    def final_pattern(self) -> Tensor:
        """Return each group's likeliest pattern, or the frozen mask: `[out, in]` bool, the same in all processes."""
        if self.pattern_logits is None:
            return unpack_bits(self.bits, 0, self.shape.numel()).view(self.shape)
        likeliest = self.pattern_logits.argmax(0)
        if self.sharding is not None:
            own, likeliest = likeliest, likeliest.new_empty(self.shape.numel() // 4, dtype=torch.uint8)
            bounds = [row * self.shape[1] // 4 for row in self.sharding.bounds]
            likeliest[bounds[self.sharding.rank] :][: len(own)] = own
            broadcast_rows(likeliest, bounds)
        table = torch.tensor(PATTERNS, dtype=torch.bool, device=self.pattern_logits.device)
        return table[likeliest.long()].reshape(self.shape)


def begin_pass(
    masks: Sequence[LearnableMask],
    pattern: Sampling,
    tile: Sampling,
    counters: Sequence[tuple[int, ...]],
    passes: Sequence[Sequence[tuple[int, ...]]] = (),
) -> None:
    """Draw the tiles' states for the next forward pass.

    Args:
        masks: masks of a model's layers.
        pattern, tile: sampling of the patterns and of the tiles.
        counters: counters of each mask, unique to the mask and this pass.
        passes: with sharding, the counters of every process' next pass, in order of the processes.
    """
    for mask, own in zip(masks, counters, strict=True):
        mask.pattern_sampling, mask.tile_sampling, mask.keys = pattern, tile, noise_keys(*own)
        mask._layer = mask.kept_norm = None
    for mask, tile_density in zip(masks, _draw(masks, tile, counters), strict=True):
        mask.tile_density = tile_density
    if passes:
        _begin_sharded(masks, tile, passes)


def _begin_sharded(masks: Sequence[LearnableMask], tile: Sampling, passes: Sequence[Sequence[tuple[int, ...]]]) -> None:
    """Begin the next pass of sharded masks, with the tiles' states and the noise of every process' pass."""
    layers = [mask._sharded for mask in masks]
    (exchanges,) = {layer.exchanges for layer in layers}
    exchanges.begin()
    with torch.no_grad():
        drawn = [_draw(masks, tile, others) for others in passes]
    for index, (mask, layer) in enumerate(zip(masks, layers, strict=True)):
        pairs = zip(passes, drawn, strict=True)
        layer.begin([mask._in_pass(noise_keys(*others[index]), densities[index]) for others, densities in pairs])
    inputs = [
        torch.empty(0, device=mask.device, requires_grad=True) if mask.tile_density is None else mask.tile_density
        for mask in masks
    ]
    for mask, output in zip(masks, PassEnd.apply(exchanges, layers, *inputs), strict=True):
        mask._pass_end = output
        if mask.tile_density is not None:
            mask.tile_density = output


@lru_cache(maxsize=1)
def _tile_places(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the place of each tile in its layer, for layers of ``counts`` tiles; the noise reads it in each pass."""
    return torch.cat([places(count, device=device) for count in counts])


def _draw(
    masks: Sequence[LearnableMask], sampling: Sampling, counters: Sequence[tuple[int, ...]]
) -> list[Tensor] | list[None]:
    """Draw the densities of all masks' tiles at once: a call for each mask would cost more than the arithmetic."""
    logits = [mask.tile_logits for mask in masks if mask.tile_logits is not None]
    if not logits:
        return [None] * len(masks)
    assert len(logits) == len(masks)
    counts, device = tuple(part.numel() for part in logits), logits[0].device
    # Nothing here waits for a GPU.
    keys = torch.tensor([noise_keys(*own, TILES) for own in counters]).to(torch.int32).to(device, non_blocking=True)
    each = torch.cat([key.expand(count, 2) for key, count in zip(keys.unbind(), counts, strict=True)])
    noise = logistic_noise(_tile_places(counts, device), (each[:, 0], each[:, 1]))
    tile_density = sample_tiles(torch.cat([part.flatten() for part in logits]), sampling, noise)
    return [part.view_as(own) for part, own in zip(tile_density.split(counts), logits, strict=True)]
