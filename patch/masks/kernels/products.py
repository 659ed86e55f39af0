"""Products of few tokens with a weight under a frozen pattern and tiles: masked, multiplied and differentiated at once.

For more tokens the mask costs little, and without AVX-512 the sums do not fit the registers: then the products of a
library are faster.
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
# Weights of a vector; tokens up to which these products are the faster ones.
LANES, FEW = 16, 256


class _Masked(ctypes.Structure):
    """`Masked` of the source."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bits", "shares")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "tile_height", "tile_width", "tile_columns")),
        ("threads", ctypes.c_int32),
    ]


@cache
def load() -> ctypes.CDLL:
    """The library, ready to be called.

    Raises:
        NoCompiler, OSError: it cannot be built, kept or read.
    """
    library, pointer = native.library(SOURCE, FLAGS), ctypes.c_void_p
    of, count = ctypes.POINTER(_Masked), ctypes.c_int64
    library.tile_products_forward.argtypes = [of, pointer, count, pointer]
    library.tile_products_forward.restype = ctypes.c_double
    library.tile_products_backward.argtypes = [of, pointer, pointer, count, ctypes.c_float, pointer, pointer]
    library.tile_products_backward.restype = None
    return library


def serves(layer: Layer, tokens: int) -> bool:
    """Whether these products are for the layer and as many tokens: on a CPU with AVX-512, in fp32."""
    weight = layer.weight
    if layer.shares is None or layer.bits is None or layer.tile[1] % LANES or tokens > FEW:
        return False
    if weight.dtype != torch.float32 or "avx512f" not in native.processor():
        return False
    return kernel_for(weight.device, weight.dtype) is compiled


def _masked(layer: Layer) -> _Masked:
    known = layer.native.get(_Masked)
    if known is None:
        sizes = (*layer.weight.shape, *layer.tile, layer.shares.shape[1])
        pointers = (tensor.data_ptr() for tensor in (layer.weight, layer.bits, layer.shares))
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
    shares_gradient: Tensor,
) -> None:
    """From the gradients of the outputs and of the sum of squares, set that of the inputs, and add that of the shares.

    Args:
        layer: of the forward pass.
        gradient: `[tokens, out]`, of the outputs.
        inputs: `[tokens, in]`, of the forward pass.
        norm_gradient: of the sum of squares.
        inputs_gradient: `[tokens, in]`, where it is wanted.
        shares_gradient: of the shares' shape.
    """
    wanted = None if inputs_gradient is None else inputs_gradient.data_ptr()
    load().tile_products_backward(
        ctypes.byref(_masked(layer)),
        *(gradient.data_ptr(), inputs.data_ptr(), len(inputs), norm_gradient, wanted, shares_gradient.data_ptr()),
    )
