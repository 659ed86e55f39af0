"""Products with codes whose parts lie directly before protected memory; prints how many were right.

A read beyond the end of a part raises a signal, which ends the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from attacks import guarded
from torch import Tensor

from patch.errors import InputError
from patch.inference.backends import compiled, unpacked
from patch.inference.linear import HybridLinear
from patch.inference.packed import PackedWeight, pack
from patch.quantization.absmax import Quantized

# Shape, tile, group size: some for each decoder, and some that are unpacked.
CASES = [((64, 128), 64, 64), ((32, 64), 32, 32), ((64, 64), 64, 96), ((12, 24), 12, 8), ((5, 20), 20, 12)]
ROWS = (1, 3, 4, 9)
# Changes of a layer's scales; afterwards it is refused, or its products are those of the new scales.
CHANGES: dict[str, Callable[[HybridLinear], object]] = {
    "negative": lambda layer: layer.scales.neg_(),
    "twice": lambda layer: layer.scales.mul_(2),
    "attribute": lambda layer: setattr(layer, "scales", layer.scales[:1].clone()),
    "strided": lambda layer: setattr(layer, "scales", layer.scales[:1].expand_as(layer.scales)),
    "double": lambda layer: setattr(layer, "scales", layer.scales.double()),
    "none": lambda layer: setattr(layer, "scales", None),
    "text": lambda layer: layer._buffers.update(scales="scales"),
    "data": lambda layer: setattr(layer.scales, "data", layer.scales[:1].clone()),
    "frozen": lambda layer: object.__setattr__(layer.packed, "scales", layer.scales[:1].clone()),
    "frozen none": lambda layer: object.__setattr__(layer.packed, "scales", None),
    "storage": lambda layer: (
        setattr(layer, "scales", layer.scales.clone()),
        layer.scales.untyped_storage().resize_(4),
    ),
    "group size": lambda layer: setattr(layer, "group_size", 1),
    "frozen group size": lambda layer: object.__setattr__(layer.packed, "group_size", 1),
    "numbers": lambda layer: setattr(layer, "values", layer.values.float()),
    "short": lambda layer: setattr(layer, "values", layer.values[:-1].clone()),
}


def layer_of(shape: tuple[int, int], tile: int, group_size: int) -> HybridLinear:
    """Return a layer whose tiles are alternately dense and sparse, with a sparse last one."""
    generator = torch.Generator().manual_seed(0)
    height, width = min(shape[0], tile), min(shape[1], tile)
    grid = shape[0] // height, shape[1] // width
    dense = (torch.arange(grid[0] * grid[1]).flip(0) % 2 == 1).view(grid)
    kept = torch.rand(shape[0], shape[1] // 4, 4, generator=generator).argsort(-1) < 2
    mask = kept.view(shape) | dense.repeat_interleave(height, 0).repeat_interleave(width, 1)
    codes = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
    scales = torch.rand(shape[0], -(-shape[1] // group_size), generator=generator) + 0.5
    packed = pack(Quantized(codes, scales, 4, group_size), mask, dense, tile)
    parts = {name: guarded(part) for name, part in packed.parts.items()}
    return HybridLinear(PackedWeight(shape, tile, **parts, group_size=group_size))


def inputs_of(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return guarded(torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype))


def right(layer: HybridLinear, shape: tuple[int, int], group_size: int, dtype: torch.dtype) -> bool:
    """Return whether a layer's products are those of its current buffers in plain PyTorch."""
    parts = {name: layer._buffers[name].clone() for name in ("dense", "values", "bits", "scales")}
    weight = PackedWeight(shape, layer.tile, **parts, group_size=group_size)
    for rows in ROWS:
        inputs = inputs_of(rows, shape[1], dtype)
        found, expected = layer(inputs).double(), unpacked.multiply(weight, inputs.double())
        if (found - expected).abs().max() > 2e-2 * expected.abs().max():
            return False
    return True


def main() -> None:
    """Multiply with each instruction set, with whole parts, wrong bits and changed scales."""
    count = 0
    for name in compiled.available():
        os.environ[compiled.CHOICE] = name
        compiled._kernel.cache_clear()
        for shape, tile, group_size in CASES:
            for dtype in (torch.float32, torch.bfloat16):
                layer = layer_of(shape, tile, group_size)
                assert right(layer, shape, group_size, dtype), (name, shape, dtype)
                count += 1
                # Writes that PyTorch does not count: any products, but no signal.
                for bits in (0, 0xFF, 0b0001_0111):
                    layer.bits.numpy().fill(bits)
                    for rows in ROWS:
                        layer(inputs_of(rows, shape[1], dtype))
    for label, change in CHANGES.items():
        for shape, tile, group_size in CASES:
            layer = layer_of(shape, tile, group_size)
            layer(inputs_of(1, shape[1], torch.float32))
            try:
                change(layer)
                for rows in ROWS:
                    layer(inputs_of(rows, shape[1], torch.float32))
            except InputError:
                count += 1
            else:
                assert right(layer, shape, group_size, torch.float32), (label, shape)
                count += 1
    print(count)


if __name__ == "__main__":
    main()
