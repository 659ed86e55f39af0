"""Kernels that make, apply and differentiate the masks of some rows of a layer, and their choice by device and dtype.

`forward(layer, first, masked)` writes the masked weights of ``len(masked)`` rows from ``first`` on into ``masked``,
`[rows, in]` of the weight's type; it returns the sum of their squares.

`backward(layer, first, gradient, masked, norm_gradient, logits_gradient, add, density_gradient)` computes the gradients
of the logits and of the tile densities from those of the masked weights and of that sum, a tensor of one number. The
former are set, or with ``add`` added, in a tensor of the logits' shape, and the latter are added in `[tiles, tiles]`.
The masked weights, computed again for it, are written into ``masked`` unless it is None.

``first`` is a row of the layer, even if the layer has the logits of some rows only.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from patch.masks.kernels import compiled, eager
from patch.masks.kernels.layer import Layer, Sampling

__all__ = ["Layer", "Sampling", "kernel_for"]


@cache
def _fast_kernel(device: str) -> ModuleType:
    try:
        if device == "cuda":
            return import_module("patch.masks.kernels.fused")
        compiled.load()
        return compiled
    except (ImportError, compiled.NoCompiler, OSError) as error:
        warnings.warn(f"masks are made by plain PyTorch, several times slower: {error}", stacklevel=2)
        return eager


def kernel_for(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """Return the fastest kernel for weights of this kind; if it is missing, warn once and return eager."""
    if device.type == "cuda" or device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        return _fast_kernel(device.type)
    return eager
