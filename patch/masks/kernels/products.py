"""Fused products of few tokens with a weight under a frozen pattern and tiles: masking, product and gradients at once.

For more tokens masking costs little in comparison, and without AVX-512 the sums do not fit the registers. A library's
products are faster then.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from patch import native
from patch.masks.kernels import compiled, kernel_for
from patch.masks.kernels.layer import Layer

SOURCE = Path(__file__).with_name("tile_products.cpp")
FLAGS = (*compiled.FLAGS, "-ffp-contract=fast")
# Weights of a vector, and the largest number of tokens for which these products are faster.
LANES, FEW = 16, 256


class _Masked(ctypes.Structure):
    """The C++ struct `Masked`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bits", "tile_density")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "tile_height", "tile_width", "tile_columns")),
        ("threads", ctypes.c_int32),
    ]


@cache
def load() -> ctypes.CDLL:
    """Return the library, ready to be called.

    Raises:
        NoCompiler, OSError: it cannot be built, cached or read.
    """
    library, pointer = native.library(SOURCE, FLAGS), ctypes.c_void_p
    of, count = ctypes.POINTER(_Masked), ctypes.c_int64
    library.tile_products_forward.argtypes = [of, pointer, count, pointer]
    library.tile_products_forward.restype = ctypes.c_double
    library.tile_products_backward.argtypes = [of, pointer, pointer, count, ctypes.c_float, pointer, pointer]
    library.tile_products_backward.restype = None
    return library


def serves(layer: Layer, tokens: int) -> bool:
    """Return whether these products support the layer and are faster for ``tokens``: on a CPU with AVX-512, in fp32."""
    weight = layer.weight
    if layer.tile_density is None or layer.bits is None or layer.tile[1] % LANES or tokens > FEW:
        return False
    if weight.dtype != torch.float32 or "avx512f" not in native.processor():
        return False
    return kernel_for(weight.device, weight.dtype) is compiled


def _masked(layer: Layer) -> _Masked:
    known = layer.native.get(_Masked)
    if known is None:
        sizes = (*layer.weight.shape, *layer.tile, layer.tile_density.shape[1])
        pointers = (tensor.data_ptr() for tensor in (layer.weight, layer.bits, layer.tile_density))
        known = layer.native[_Masked] = _Masked(*pointers, *sizes, torch.get_num_threads())
    return known


def forward(layer: Layer, inputs: Tensor, outputs: Tensor) -> float:
    """Set ``outputs``, `[tokens, out]`, to ``inputs``, `[tokens, in]`, times the masked weight.

    Returns:
        The sum of the squares of the masked weight.
    """
    of = ctypes.byref(_masked(layer))
    return load().tile_products_forward(of, inputs.data_ptr(), len(inputs), outputs.data_ptr())


def backward(
    layer: Layer,
    gradient: Tensor,
    inputs: Tensor,
    norm_gradient: float,
    inputs_gradient: Tensor | None,
    density_gradient: Tensor,
) -> None:
    """Set the gradient of the inputs and add that of the tile densities, from those of the outputs and squared sum.

    Args:
        layer: the layer of the forward pass.
        gradient: `[tokens, out]`, gradient of the outputs.
        inputs: `[tokens, in]`, inputs of the forward pass.
        norm_gradient: gradient of the sum of squares.
        inputs_gradient: `[tokens, in]`, or None if it is not needed.
        density_gradient: gradient of the tile densities, of their shape.
    """
    wanted = None if inputs_gradient is None else inputs_gradient.data_ptr()
    load().tile_products_backward(
        ctypes.byref(_masked(layer)),
        *(gradient.data_ptr(), inputs.data_ptr(), len(inputs), norm_gradient, wanted, density_gradient.data_ptr()),
    )
