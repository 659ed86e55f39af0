"""Masks of some rows of a layer, made, applied and differentiated; a table of what does it where.

`forward(layer, first, masked, probabilities)` writes the masked weights of ``len(masked)`` rows from ``first`` on into
``masked``, `[rows, in]` of the weight's type, and the probabilities of the patterns, if asked for, into
`[6, rows, in / 4]` fp32; it returns the sum of the squares of the masked weights.

`backward(layer, first, gradient, probabilities, norm_gradient, logits_gradient, add, shares_gradient)` takes the
gradients of the masked weights and of that sum to those of the logits, set or (``add``) added in a tensor of their
shape, and of the shares, added in `[tiles, tiles]`.

``first`` counts the rows of the layer, also where there are the logits of some rows alone.
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
def _on_cpu() -> ModuleType:
    try:
        compiled.load()
    except (compiled.NoCompiler, OSError) as error:
        warnings.warn(f"masks are made by plain PyTorch, several times slower: {error}", stacklevel=2)
        return eager
    return compiled


@cache
def _on_gpu() -> ModuleType:
    try:
        return import_module("patch.masks.kernels.fused")
    except ImportError as error:
        warnings.warn(f"masks are made by plain PyTorch, several times slower: {error}", stacklevel=2)
        return eager


def kernel_for(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The fastest module for weights of that kind; where it is missing, a warning says once why and eager stands in."""
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        return _on_cpu()
    return _on_gpu() if device.type == "cuda" else eager
