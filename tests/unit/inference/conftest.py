"""Fixtures: random hybrid weights, and masks of tiny models, made without the code under test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from patch.inference.backends import compiled
from patch.inference.packed import PackedWeight, pack
from patch.masks.packed import MaskSet
from patch.models.loading import prunable_linears, weight_matrix
from patch.native import NoCompiler, build
from patch.quantization.absmax import Quantized


@dataclass
class Hybrid:
    """Weight with its mask and its dense tiles."""

    weight: Tensor
    mask: Tensor
    dense: Tensor
    tile: int

    @property
    def packed(self) -> PackedWeight:
        return pack(self.weight, self.mask, self.dense, self.tile)

    @property
    def masked(self) -> Tensor:
        """Masked weight."""
        return torch.where(self.mask, self.weight, torch.zeros_like(self.weight))


def _hybrid_mask(
    shape: tuple[int, int], tile: int, fraction: float, generator: torch.Generator, fewer: bool = False
) -> tuple[Tensor, Tensor]:
    """Return a random 2:4 mask, up to 2:4 with ``fewer``, under dense tiles, and their map."""
    (rows, columns), height, width = shape, min(shape[0], tile), min(shape[1], tile)
    assert rows % height == 0 and columns % width == 0, (shape, tile)
    dense = torch.rand(rows // height, columns // width, generator=generator) < fraction
    if 0 < fraction < 1 and dense.numel() > 1:
        first, last = torch.randperm(dense.numel(), generator=generator)[:2].tolist()
        dense.view(-1)[first], dense.view(-1)[last] = True, False
    mask = (torch.rand(rows, columns // 4, 4, generator=generator).argsort(-1) < 2).view(shape)
    if fewer:
        mask &= torch.rand(shape, generator=generator) < 0.7
    whole = torch.zeros(shape, dtype=torch.bool)
    for i, j in dense.nonzero().tolist():
        whole[i * height : (i + 1) * height, j * width : (j + 1) * width] = True
    return mask | whole, dense


@pytest.fixture
def hybrid_weight() -> Callable[..., Hybrid]:
    """Return a function of shape, tile and dense fraction that makes an equal random weight and mask at each call."""

    def make(
        shape: tuple[int, int],
        tile: int,
        fraction: float = 0.5,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        fewer: bool = False,
        whole: bool = False,
    ) -> Hybrid:
        """Return the weight; with ``whole`` it has small integers, whose sums are exact in fp32."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randint(-4, 5, shape, generator=generator) if whole else torch.randn(shape, generator=generator)
        return Hybrid(weight.to(dtype), *_hybrid_mask(shape, tile, fraction, generator, fewer), tile)

    return make


@dataclass
class Coded:
    """Quantized weight with its mask and its dense tiles."""

    quantized: Quantized
    mask: Tensor
    dense: Tensor
    tile: int

    @property
    def packed(self) -> PackedWeight:
        return pack(self.quantized, self.mask, self.dense, self.tile)

    @property
    def masked(self) -> Tensor:
        """Masked weight in fp64, in which the product of a code and its scale is exact."""
        codes, scales = self.quantized.codes.double(), self.quantized.scales.double()
        groups = torch.arange(codes.shape[1]) // min(self.quantized.group_size, codes.shape[1])
        return torch.where(self.mask, codes * scales[:, groups], 0.0)


@pytest.fixture
def coded_weight() -> Callable[..., Coded]:
    """Return a function of shape, tile and group size that makes an equal random quantized weight at each call."""

    def make(
        shape: tuple[int, int],
        tile: int,
        group_size: int,
        fraction: float = 0.5,
        seed: int = 0,
        fewer: bool = False,
        whole: bool = False,
    ) -> Coded:
        """Return the weight; with ``whole`` its scales are 1, so that sums are exact in fp32."""
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
        scales = torch.randn(shape[0], -(-shape[1] // group_size), generator=generator).exp()
        quantized = Quantized(codes, torch.ones_like(scales) if whole else scales, 4, group_size)
        return Coded(quantized, *_hybrid_mask(shape, tile, fraction, generator, fewer), tile)

    return make


@pytest.fixture
def model_masks() -> Callable[..., MaskSet]:
    """Return a function of a model and a tile (None: 2:4) that makes random masks; the first layer is dense."""

    def make(model: nn.Module, tile: int | None, fraction: float = 0.4, seed: int = 0) -> MaskSet:
        generator = torch.Generator().manual_seed(seed)
        masks, tiles = {}, {}
        for i, (name, linear) in enumerate(prunable_linears(model).items()):
            shape = tuple(weight_matrix(linear).shape)
            part = 0.0 if tile is None else fraction if i else 1.0
            masks[name], tiles[name] = _hybrid_mask(shape, tile or max(shape), part, generator)
        return MaskSet(masks, "2:4") if tile is None else MaskSet(masks, "hybrid", tiles, tile)

    return make


def compiles() -> bool:
    try:
        return build(compiled.SOURCE).exists()
    except (NoCompiler, OSError):
        return False


@pytest.fixture(params=compiled.available())
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Select each instruction set that this processor has; all have `portable`."""
    if not compiles():
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("PATCH_INSTRUCTIONS", request.param)
    compiled._kernel.cache_clear()
    yield request.param
    compiled._kernel.cache_clear()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Return a function that sets the number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
