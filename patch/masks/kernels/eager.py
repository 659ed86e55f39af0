"""Kernel of the masks in plain PyTorch, on any device: slower than a fused one, with equal results but for rounding."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from patch.masks.kernels.layer import Layer
from patch.masks.noise import gumbel_noise, places

# The weights of four that each pattern keeps, in the order of the logits.
PATTERNS = ((1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1))


@cache
def _patterns(device: torch.device) -> Tensor:
    return torch.tensor(PATTERNS, dtype=torch.float32, device=device)


def _probabilities(layer: Layer, first: int, rows: int) -> Tensor | None:
    """Return the Gumbel-softmax of the logits of some rows, `[6, rows * groups]`; None for a frozen pattern."""
    if layer.logits is None:
        return None
    groups = layer.weight.shape[1] // 4
    start, count, sampling = first * groups, rows * groups, layer.sampling
    index, whole = places(count, start, layer.weight.device), len(layer.weight) * groups
    scores = torch.stack([gumbel_noise(index + k * whole, layer.keys) for k in range(6)])
    offset = start - layer.first_row * groups
    scores.add_(layer.logits[:, offset : offset + count], alpha=sampling.scale).div_(sampling.temperature)
    return torch.softmax(scores, 0)


def _pattern(layer: Layer, first: int, rows: int, probabilities: Tensor | None) -> Tensor:
    """Return the 2:4 part of the mask of some rows, `[rows, in]` fp32."""
    columns = layer.weight.shape[1]
    if layer.logits is None:
        return unpack_bits(layer.bits, first * columns, rows * columns).view(rows, columns).float()
    chosen = probabilities
    if layer.sampling.hard:
        chosen = torch.zeros_like(chosen).scatter_(0, chosen.argmax(0, keepdim=True), 1)
    return (_patterns(chosen.device).T @ chosen).T.reshape(rows, columns)


def _dense(layer: Layer, first: int, rows: int) -> Tensor | float:
    """Return the dense fraction of the tile of each weight of some rows, `[rows, in]`; 0 without tiles."""
    if layer.tile_density is None:
        return 0.0
    height, width = layer.tile
    tiles = torch.arange(first, first + rows, device=layer.tile_density.device) // height
    return layer.tile_density[tiles].repeat_interleave(width, 1)


def forward(layer: Layer, first: int, masked: Tensor) -> Tensor:
    """Make masked weights; see `patch.masks.kernels`."""
    rows = len(masked)
    pattern = _pattern(layer, first, rows, _probabilities(layer, first, rows))
    dense = _dense(layer, first, rows)
    values = layer.weight[first : first + rows].float() * (dense + (1 - dense) * pattern)
    masked.copy_(values)
    return values.square().sum(dtype=torch.float64)


def backward(
    layer: Layer,
    first: int,
    gradient: Tensor,
    masked: Tensor | None,
    norm_gradient: Tensor,
    logits_gradient: Tensor | None,
    add: bool,
    density_gradient: Tensor | None,
) -> None:
    """Differentiate masked weights; see `patch.masks.kernels`."""
    rows, columns = gradient.shape
    probabilities = _probabilities(layer, first, rows)
    pattern, dense = _pattern(layer, first, rows, probabilities), _dense(layer, first, rows)
    weight = layer.weight[first : first + rows].float()
    mask = dense + (1 - dense) * pattern
    if masked is not None:
        masked.copy_(weight * mask)
    grad_mask = weight * (gradient.float() + 2 * norm_gradient * mask * weight)
    if layer.tile_density is not None:
        height, width = layer.tile
        add_by_tile((grad_mask * (1 - pattern)).view(rows, -1, width).sum(2), first, height, density_gradient)
    if logits_gradient is not None:
        by_pattern = _patterns(gradient.device) @ (grad_mask * (1 - dense)).view(-1, 4).T
        by_pattern -= (by_pattern * probabilities).sum(0)
        by_pattern.mul_(probabilities).mul_(layer.sampling.scale / layer.sampling.temperature)
        offset = (first - layer.first_row) * columns // 4
        place = logits_gradient[:, offset : offset + rows * columns // 4]
        place.add_(by_pattern) if add else place.copy_(by_pattern)


def add_by_tile(by_row: Tensor, first: int, height: int, total: Tensor) -> None:
    """Add `[rows, tiles along in]`, of rows from ``first`` on, to `[tiles along out, tiles along in]`, in order."""
    rows = len(by_row)
    if first % height == 0 and rows % height == 0:
        total[first // height : (first + rows) // height] += by_row.view(-1, height, by_row.shape[1]).sum(1)
        return
    # No `index_add_`, since on a GPU the order of its sums changes from run to run.
    for tile in range(first // height, (first + rows - 1) // height + 1):
        inside = slice(max(0, tile * height - first), (tile + 1) * height - first)
        total[tile] += by_row[inside].sum(0)


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool mask: bit i of byte b is weight 8 b + i, row by row, and eight bytes of padding follow."""
    flat = mask.reshape(-1).to(torch.uint8)
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % 8 + 64)]).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, first: int, count: int) -> Tensor:
    """Return ``count`` weights of a packed mask from ``first`` on, bool."""
    start, stop = first // 8, (first + count + 7) // 8
    spread = bits[start:stop, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (spread.reshape(-1)[first - 8 * start :][:count] & 1).bool()
