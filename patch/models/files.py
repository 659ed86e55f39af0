"""Safe reading of the JSON files of an untrusted model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patch.errors import InputError
from patch.files.io import read_json


def read_object(path: Path | str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        InputError: the file is missing, is not strict JSON, or its value is not an object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: it holds {type(value).__name__}; expected a JSON object")
    return value


def check_objects(folder: Path | str, names: tuple[str, ...]) -> None:
    """Check the existing files among ``names`` in a folder with ``read_object``.

    Raises:
        InputError: a file is invalid; the message names it.
    """
    for name in names:
        if (Path(folder) / name).exists():
            read_object(Path(folder) / name)


def check_weights(folder: Path | str) -> None:
    """Refuse a folder without safetensors weights.

    Raises:
        InputError: the folder has no `.safetensors` file.
    """
    if not any(Path(folder).glob("*.safetensors")):
        raise InputError(
            f"model folder {folder} cannot be loaded: no .safetensors file in it; other weights, such as pickles, can "
            "run code and are not read: load them where you trust them and save them again with save_pretrained"
        )
