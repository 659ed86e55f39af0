"""Safetensors files that are written atomically, and verified against a checksum of all their contents when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patch.errors import InputError
from patch.io import CHECKSUM, atomic_file, parse_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "format"
HEADER = "header"


def save_tensors(path: Path | str, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and a JSON header, with a checksum of both, atomically.

    Args:
        path: of the file.
        kind: name and version of the format, such as `patch-mask-2`.
        header: JSON values; no `NaN` or `Infinity`.
        tensors: on any device.
    """
    from safetensors.torch import save_file

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, allow_nan=False)
    metadata = {FORMAT: kind, HEADER: text, CHECKSUM: _checksum(kind, text, stored)}
    with atomic_file(path) as temporary:
        save_file(stored, temporary, metadata)


def load_tensors(path: Path | str, kind: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_tensors` wrote, into memory of its own: later changes of the file do not reach the tensors.

    Args:
        path: of the file.
        kind: as it was saved.
        what: what the file holds, for messages, such as `mask`.

    Returns:
        The header, and the tensors by name, on the CPU.

    Raises:
        InputError: the file is missing, truncated, of another format, or its contents do not match its checksum.
    """
    with _opened(path, kind, what) as (file, metadata):
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a dict)
    if metadata.get(CHECKSUM) != _checksum(kind, metadata.get(HEADER, ""), tensors):
        raise InputError(f"{what} {path}: its contents do not match its checksum: damaged or edited; make it again")
    return _header(metadata, path, what), tensors


def load_header(path: Path | str, kind: str, what: str) -> dict[str, Any]:
    """Read the header alone, which is not verified against the checksum.

    Raises:
        InputError: the file is missing, truncated or of another format.
    """
    with _opened(path, kind, what) as (_, metadata):
        return _header(metadata, path, what)


@contextmanager
def _opened(path: Path | str, kind: str, what: str) -> Iterator[tuple[Any, dict[str, str]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get(FORMAT) != kind:
                raise InputError(
                    f"{what} {path}: format is {metadata.get(FORMAT)!r}, expected {kind!r}; "
                    "it was not written by this version of the software"
                )
            yield file, metadata
    except FileNotFoundError:
        raise InputError(f"{what} {path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{what} {path}: truncated or not a safetensors file ({error})") from None


def _header(metadata: dict[str, str], path: Path | str, what: str) -> dict[str, Any]:
    header = parse_json(metadata.get(HEADER, ""), f"{what} {path}: its header")
    if not isinstance(header, dict):
        raise InputError(f"{what} {path}: its header is {type(header).__name__}; expected a JSON object")
    return header


def _checksum(kind: str, header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the format, the header, and each tensor's name, dtype, shape and bytes, in hexadecimal digits."""
    import torch

    found = hashlib.sha256(json.dumps([kind, header]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return found.hexdigest()
