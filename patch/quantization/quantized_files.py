"""Files of quantised layers: packed codes, scales and adapters, with checks on reading."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from patch.errors import InputError
from patch.files.schema import Name, Schema, check
from patch.files.tensors import load_tensors, save_tensors
from patch.masks.header import Size
from patch.quantization.absmax import Quantized, check_grid, group_count
from patch.quantization.model import QuantizedLayer
from patch.quantization.nibbles import pack_nibbles, unpack_nibbles
from patch.quantization.slim_lora import Adapter

FORMAT = "patch-quantized-2"
_FLOATS = {torch.float32, torch.bfloat16, torch.float16}


class _Description(Schema):
    """Metadata of one layer."""

    shape: list[Size] = Field(min_length=2, max_length=2)
    bits: int
    group_size: int
    rank: Size | None


class _Header(Schema):
    digest: str
    cost: dict[str, Annotated[float, Field(ge=0)]]
    layers: dict[Name, _Description]


def save_layers(path: Path | str, layers: Mapping[str, QuantizedLayer], digest: str, cost: dict[str, float]) -> None:
    """Write quantised layers atomically, with the digest of their settings and the cost of their computation.

    Two codes of up to 4 bits share a byte; wider codes take one byte each. Scales stay fp32, adapters keep their dtype.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors[f"{name}.codes"] = _pack(layer.weight)
        tensors[f"{name}.scales"] = layer.weight.scales
        if layer.adapter is not None:
            tensors[f"{name}.left"] = layer.adapter.left
            tensors[f"{name}.right"] = layer.adapter.right
    described = {
        name: _Description(
            shape=list(layer.weight.codes.shape),
            bits=layer.weight.bits,
            group_size=layer.weight.group_size,
            rank=layer.adapter.left.shape[1] if layer.adapter is not None else None,
        )
        for name, layer in layers.items()
    }
    save_tensors(path, FORMAT, _Header(digest=digest, cost=cost, layers=described).model_dump(), tensors)


def load_layers(path: Path | str, digest: str | None = None) -> tuple[dict[str, QuantizedLayer], dict[str, float]]:
    """Read and verify a file of `save_layers`, and return the layers and their cost.

    Args:
        path: path of the file.
        digest: required digest of the settings; None for any.

    Raises:
        InputError: the file is missing, damaged or of another format, its contents do not fit its header, or its
            settings differ.
    """
    values, tensors = load_tensors(path, FORMAT, "quantised weights")
    header = check(_Header, values, f"quantised weights {path}: invalid header")
    if digest is not None and header.digest != digest:
        raise InputError(f"quantised weights {path}: made with other settings; remove them to make them again")
    try:
        layers = {name: _layer(name, fields, tensors) for name, fields in header.layers.items()}
        if tensors:
            raise InputError(f"{min(tensors)!r:.200} belongs to no layer of its header")
    except InputError as error:
        raise InputError(f"quantised weights {path}: {error}") from None
    return layers, header.cost


def _layer(name: str, fields: _Description, tensors: dict[str, Tensor]) -> QuantizedLayer:
    """Remove the tensors of a layer from ``tensors`` and return the layer."""
    (rows, columns), bits, group_size = fields.shape, fields.bits, fields.group_size
    check_grid(bits, group_size)
    packed = _part(tensors, f"{name}.codes", {torch.uint8}, [-(-rows * columns // 2) if bits <= 4 else rows * columns])
    scales = _part(tensors, f"{name}.scales", {torch.float32}, [rows, group_count(columns, group_size)])
    if bits <= 4 and rows * columns % 2 and int(packed[-1]) >> 4:
        raise InputError(f"layer {name}: it has bits after its last code")
    codes = _unpack(packed, [rows, columns], bits)
    limit = 2 ** (bits - 1)
    if codes.numel() and not -limit <= int(codes.min()) <= int(codes.max()) < limit:
        raise InputError(f"layer {name}: it has codes outside {bits} bits")
    if not ((scales > 0) & (scales * limit).isfinite()).all():
        raise InputError(f"layer {name}: it has scales that are not positive and finite, or too large")
    adapter = None
    if fields.rank is not None:
        left = _part(tensors, f"{name}.left", _FLOATS, [rows, fields.rank])
        adapter = Adapter(left, _part(tensors, f"{name}.right", {left.dtype}, [fields.rank, columns]))
        if not (adapter.left.isfinite().all() and adapter.right.isfinite().all()):
            raise InputError(f"layer {name}: it has an adapter that is not finite")
    return QuantizedLayer(Quantized(codes, scales, bits, group_size), adapter)


def _part(tensors: dict[str, Tensor], key: str, dtypes: set[torch.dtype], shape: list[int]) -> Tensor:
    tensor = tensors.pop(key, None)
    if tensor is None or list(tensor.shape) != shape or tensor.dtype not in dtypes:
        raise InputError(f"{key} is missing or is not {shape} of the right type")
    return tensor


def _pack(weight: Quantized) -> Tensor:
    """Pack codes as unsigned bytes, shifted to start at 0; up to four bits, two share a byte."""
    codes = weight.codes.cpu().reshape(-1)
    if weight.bits > 4:
        return (codes.to(torch.int16) + 128).to(torch.uint8)
    # The half of a byte after an odd number of codes is zero.
    return pack_nibbles(F.pad(codes, (0, codes.numel() % 2), value=-8))


def _unpack(packed: Tensor, shape: list[int], bits: int) -> Tensor:
    if bits > 4:
        return (packed.to(torch.int16) - 128).to(torch.int8).reshape(shape)
    return unpack_nibbles(packed)[: math.prod(shape)].reshape(shape)
