"""Safetensors files with atomic writes and a checksum of all contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patch.errors import InputError
from patch.files.io import CHECKSUM, atomic_file, json_checksum, parse_json

if TYPE_CHECKING:
    from torch import Tensor

# A single key: safetensors does not order several keys, which would change the bytes.
_METADATA = "patch"


def save_tensors(path: Path | str, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and a JSON header atomically, with a checksum of both; equal contents give equal bytes.

    Args:
        path: path of the file.
        kind: name and version of the format, such as `patch-mask-2`.
        header: JSON values without `NaN` and `Infinity`.
        tensors: tensors by name, on any device.
    """
    from safetensors.torch import save_file

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    contents = {
        "format": kind,
        # As after a read, which turns numeric keys into strings.
        "header": json.loads(json.dumps(header, allow_nan=False)),
        "tensors": {name: _tensor_checksum(tensor) for name, tensor in stored.items()},
    }
    with atomic_file(path) as temporary:
        save_file(stored, temporary, {_METADATA: json.dumps({**contents, CHECKSUM: json_checksum(contents)})})


def load_tensors(
    path: Path | str, kind: str, what: str, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file of `save_tensors` into private memory, so that later changes of the file do not reach the tensors.

    Args:
        path: path of the file.
        kind: expected format.
        what: name of the contents in messages, such as `mask`.
        wanted: predicate on tensor names; other tensors are neither read nor verified.

    Returns:
        The header, and the tensors by name, on the CPU.

    Raises:
        InputError: the file is missing, truncated, of another format, or its contents do not match its checksum.
    """
    from safetensors import SafetensorError, safe_open

    contents = _contents(path, kind, what)
    checksums, tensors = contents["tensors"], {}
    try:
        with safe_open(path, "pt") as file:
            found = set(file.keys())
            for name in filter(wanted, checksums if found == set(checksums) else ()):
                tensors[name] = file.get_tensor(name).clone()
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, what, error) from None
    if found != set(checksums) or any(_tensor_checksum(tensors[name]) != checksums[name] for name in tensors):
        raise _damaged(path, what)
    return contents["header"], tensors


def load_header(path: Path | str, kind: str, what: str) -> dict[str, Any]:
    """Read and verify only the header, without PyTorch.

    Raises:
        InputError: the file is missing, truncated or of another format, or its header does not match its checksum.
    """
    return _contents(path, kind, what)["header"]


def _contents(path: Path | str, kind: str, what: str) -> dict[str, Any]:
    """Return the verified contents of a file without its tensors: the format, the header and the tensor checksums."""
    from safetensors import SafetensorError, safe_open

    try:
        # Read as NumPy's, the file needs no import of PyTorch.
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise InputError(f"{what} {path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, what, error) from None
    contents = parse_json(metadata.get(_METADATA, "{}"), f"{what} {path}: its header")
    found = contents.get("format") if isinstance(contents, dict) else None
    if found != kind:
        raise InputError(
            f"{what} {path}: format is {found!r:.80}, expected {kind!r}; "
            "it was not written by this version of the software"
        )
    if contents.pop(CHECKSUM, None) != json_checksum(contents):
        raise _damaged(path, what)
    header, checksums = contents.get("header"), contents.get("tensors")
    if not isinstance(header, dict) or not isinstance(checksums, dict):
        raise InputError(f"{what} {path}: its header and its checksums must be JSON objects")
    return contents


def _unreadable(path: Path | str, what: str, error: Exception) -> InputError:
    # The reason may quote the file, so it is truncated to one line.
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{what} {path}: truncated or not a safetensors file ({reason})")


def _damaged(path: Path | str, what: str) -> InputError:
    return InputError(f"{what} {path}: its contents do not match its checksum: damaged or edited; make it again")


def _tensor_checksum(tensor: Tensor) -> str:
    """Return the hexadecimal SHA-256 of a tensor's dtype, shape and bytes."""
    import torch

    found = hashlib.sha256(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
    found.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return found.hexdigest()
