"""Initialization of the logits of a learnable mask."""

from __future__ import annotations

import torch
from torch import Tensor

from patch.masks.kernels.eager import PATTERNS
from patch.masks.tile import dense_tile_budget, sum_tiles, tile_grid


def initial_pattern_logits(
    shape: torch.Size, std: float, initial: Tensor | None, strength: float, generator: torch.Generator
) -> Tensor:
    """Return logits of the six patterns: normal noise, raised where a pattern keeps weights of the initial mask.

    Args:
        shape: `[out, in]` of the weight.
        std: standard deviation of the noise.
        initial: `[out, in]` bool, a 2:4 mask, or None.
        strength: a pattern gets `(overlap - 1) * std * strength`, overlap = kept weights in common (0 to 2).
        generator: CPU generator of the noise.

    Returns:
        `[6, out * in / 4]` fp32.
    """
    logits = torch.randn(6, shape.numel() // 4, generator=generator) * std
    if initial is not None:
        overlap = torch.tensor(PATTERNS, dtype=torch.float32) @ initial.reshape(-1, 4).float().T
        logits += (overlap - 1) * (std * strength)
    return logits


def initial_tile_logits(
    shape: torch.Size,
    tile: int,
    sparsity: float,
    std: float,
    initial: Tensor | None,
    strength: float,
    generator: torch.Generator,
) -> Tensor:
    """Return logits of the tiles: noise, plus `strength * std` where ``initial`` keeps most of a tile, else minus it.

    Args:
        shape: `[out, in]` of the weight.
        tile: side of a tile.
        sparsity: target; the budget of dense tiles follows from it.
        std: standard deviation of the noise.
        initial: `[out, in]` bool or scores of any kind, whose sum over a tile ranks it; None for noise alone.
        strength: shift of the logits in units of ``std``.
        generator: CPU generator of the noise.

    Returns:
        `[tiles along out, tiles along in]` fp32.
    """
    logits = torch.randn(tile_grid(shape, tile), generator=generator) * std
    if initial is not None:
        kept = sum_tiles(initial.float(), tile).flatten()
        dense = torch.zeros_like(kept, dtype=torch.bool)
        dense[kept.argsort(descending=True, stable=True)[: dense_tile_budget(kept.numel(), sparsity)]] = True
        logits += torch.where(dense, strength * std, -strength * std).reshape(logits.shape)
    return logits
