"""Kernels that make, apply and differentiate the masks of some rows of a layer, and their choice by device and dtype.

`forward(layer, first, masked, probabilities)` writes the masked weights of ``len(masked)`` rows from ``first`` on into
``masked``, `[rows, in]` of the weight's type, and the probabilities of the patterns, if asked for, into
`[6, rows, in / 4]` fp32; it returns the sum of the squares of the masked weights.

`backward(layer, first, gradient, probabilities, norm_gradient, logits_gradient, add, density_gradient)` computes the
gradients of the logits and of the tile densities from those of the masked weights and of that sum. The former are set,
or with ``add`` added, in a tensor of the logits' shape, and the latter are added in `[tiles, tiles]`.

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
