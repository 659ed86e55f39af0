"""Quantised layers on disk: packed codes, scales and adapters, checked when they are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patch.errors import InputError
from patch.io import atomic_file
from patch.quantization.absmax import Quantized, check_grid, group_count
from patch.quantization.model import QuantizedLayer
from patch.quantization.slim_lora import Adapter

FORMAT = "patch-quantized-1"
_FLOATS = {torch.float32, torch.bfloat16, torch.float16}


def save_layers(path: Path | str, layers: Mapping[str, QuantizedLayer], digest: str, cost: dict[str, float]) -> None:
    """Write quantised layers, atomically, with the digest of the settings that made them and what it took.

    Codes of up to 4 bits go two to a byte, wider ones one to a byte; scales stay fp32, adapters keep their dtype.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors[f"{name}.codes"] = _pack(layer.weight)
        tensors[f"{name}.scales"] = layer.weight.scales.cpu().contiguous()
        if layer.adapter is not None:
            tensors[f"{name}.left"] = layer.adapter.left.cpu().contiguous()
            tensors[f"{name}.right"] = layer.adapter.right.cpu().contiguous()
    description = {
        name: {
            "shape": list(layer.weight.codes.shape),
            "bits": layer.weight.bits,
            "group_size": layer.weight.group_size,
            "rank": layer.adapter.rank if layer.adapter is not None else None,
        }
        for name, layer in layers.items()
    }
    with atomic_file(path) as temporary:
        metadata = {"format": FORMAT, "digest": digest, "cost": json.dumps(cost), "layers": json.dumps(description)}
        save_file(tensors, temporary, metadata=metadata)


def load_layers(path: Path | str) -> tuple[dict[str, QuantizedLayer], dict[str, float]]:
    """Read and verify a file of `save_layers`: the layers, and what it took to make them.

    `patch.pruning.weights.weights_digest` reads its digest.

    Raises:
        InputError: the file is missing, truncated or foreign, or its contents do not fit its header.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise InputError(f"quantised weights {path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"quantised weights {path}: truncated or not a safetensors file ({error})") from None
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"quantised weights {path}: format is {metadata.get('format')!r}, expected {FORMAT!r}; "
            "it was not written by this software"
        )
    try:
        layers = {name: _layer(name, fields, tensors) for name, fields in json.loads(metadata["layers"]).items()}
        cost = json.loads(metadata["cost"])
        if tensors:
            raise InputError(f"{min(tensors)} belongs to no layer of its header")
    except InputError as error:
        raise InputError(f"quantised weights {path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"quantised weights {path}: its header is damaged ({type(error).__name__}: {error}); make it again"
        ) from None
    return layers, cost


def _layer(name: str, fields: dict[str, Any], tensors: dict[str, Tensor]) -> QuantizedLayer:
    """Take the tensors of a layer out of ``tensors``."""
    (rows, columns), bits, group_size, rank = (fields[key] for key in ("shape", "bits", "group_size", "rank"))
    check_grid(bits, group_size)
    packed = _part(tensors, f"{name}.codes", {torch.uint8}, [_packed_size(rows * columns, bits)])
    scales = _part(tensors, f"{name}.scales", {torch.float32}, [rows, group_count(columns, group_size)])
    codes = _unpack(packed, [rows, columns], bits)
    limit = 2 ** (bits - 1)
    if codes.numel() and not -limit <= int(codes.min()) <= int(codes.max()) < limit:
        raise InputError(f"layer {name}: it has codes outside {bits} bits")
    if not (scales.isfinite() & (scales > 0)).all():
        raise InputError(f"layer {name}: it has scales that are not positive and finite")
    adapter = None
    if rank is not None:
        left = _part(tensors, f"{name}.left", _FLOATS, [rows, rank])
        adapter = Adapter(left, _part(tensors, f"{name}.right", {left.dtype}, [rank, columns]))
    return QuantizedLayer(Quantized(codes, scales, bits, group_size), adapter)


def _part(tensors: dict[str, Tensor], key: str, dtypes: set[torch.dtype], shape: list[int]) -> Tensor:
    tensor = tensors.pop(key, None)
    if tensor is None or list(tensor.shape) != shape or tensor.dtype not in dtypes:
        raise InputError(f"{key} is missing or is not {shape} of the right type")
    return tensor


def _packed_size(count: int, bits: int) -> int:
    return -(-count // 2) if bits <= 4 else count


def _pack(weight: Quantized) -> Tensor:
    """Codes as unsigned bytes, shifted to start at 0; up to 4 bits the first of two in the lower half."""
    half = 8 if weight.bits <= 4 else 128
    values = (weight.codes.cpu().to(torch.int16).reshape(-1) + half).to(torch.uint8)
    if weight.bits > 4:
        return values
    if values.numel() % 2:
        values = torch.cat([values, values.new_zeros(1)])
    return values[::2] | (values[1::2] << 4)


def _unpack(packed: Tensor, shape: list[int], bits: int) -> Tensor:
    if bits > 4:
        return (packed.to(torch.int16) - 128).to(torch.int8).reshape(shape)
    values = torch.stack([packed & 15, packed >> 4], dim=1).reshape(-1)[: math.prod(shape)]
    return (values.to(torch.int8) - 8).reshape(shape)
