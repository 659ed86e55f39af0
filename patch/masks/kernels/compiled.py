"""CPU kernel of the masks, compiled on first use for the machine's processor and cached."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from patch import native
from patch.masks.kernels.layer import Layer
from patch.native import NoCompiler

__all__ = ["NoCompiler", "backward", "forward", "load"]

SOURCE = Path(__file__).with_name("masked_rows.cpp")
# The compiler maps the vector types of the source to the processor's instructions.
FLAGS = ("-march=native",)


class _Rows(ctypes.Structure):
    """The C++ struct `Rows`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "logits", "bits", "tile_density")),
        *((name, ctypes.c_int64) for name in ("rows", "groups", "first_row", "plane", "first_group", "all_groups")),
        *((name, ctypes.c_int64) for name in ("tile_height", "tile_groups", "tile_columns")),
        *((name, ctypes.c_float) for name in ("scale", "temperature")),
        *((name, ctypes.c_uint32) for name in ("key0", "key1")),
        *((name, ctypes.c_int32) for name in ("hard", "half", "threads")),
    ]


@cache
def load() -> ctypes.CDLL:
    """Return the library, ready to be called.

    Raises:
        NoCompiler, OSError, InputError: see `patch.native.build`.
    """
    library = native.library(SOURCE, FLAGS)
    pointer = ctypes.c_void_p
    library.masked_rows_forward.argtypes = [ctypes.POINTER(_Rows), pointer]
    library.masked_rows_backward.argtypes = [
        ctypes.POINTER(_Rows),
        *(pointer, pointer, ctypes.c_float, pointer, ctypes.c_int, pointer, pointer),
    ]
    library.masked_rows_forward.restype, library.masked_rows_backward.restype = ctypes.c_double, None
    return library


def _pointer(tensor: Tensor | None) -> int | None:
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


def _rows(layer: Layer, first: int, rows: int) -> _Rows:
    """Return the library's view of a layer; all but the rows is filled in once a layer and pass."""
    known = layer.native.get(_Rows)
    if known is None:
        (height, width), groups = layer.tile, layer.weight.shape[1] // 4
        known = layer.native[_Rows] = _Rows(
            *(_pointer(tensor) for tensor in (layer.weight, layer.logits, layer.bits, layer.tile_density)),
            *(0, groups, 0, 0 if layer.logits is None else layer.logits.shape[1]),
            *(layer.first_row * groups, len(layer.weight) * groups),
            *(height, width // 4, 1 if layer.tile_density is None else layer.tile_density.shape[1]),
            *(layer.sampling.scale, layer.sampling.temperature, *layer.keys),
            *(layer.sampling.hard, layer.weight.dtype == torch.bfloat16, torch.get_num_threads()),
        )
    known.first_row, known.rows = first, rows
    return known


def forward(layer: Layer, first: int, masked: Tensor) -> float:
    """Make masked weights; see `patch.masks.kernels`."""
    rows = _rows(layer, first, len(masked))
    return load().masked_rows_forward(ctypes.byref(rows), _pointer(masked))


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
    by_group = None if layer.tile_density is None else torch.empty(len(gradient), gradient.shape[1] // 4)
    rows = _rows(layer, first, len(gradient))
    load().masked_rows_backward(
        ctypes.byref(rows),
        *(_pointer(gradient), _pointer(masked), float(norm_gradient)),
        *(_pointer(logits_gradient), add, _pointer(by_group), _pointer(density_gradient)),
    )
