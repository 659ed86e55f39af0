"""Safe reading of the JSON files of an untrusted model folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from patch.errors import InputError


def read_object(path: Path | str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        InputError: the file is missing, is not JSON, holds another value, or a number that is infinite or NaN.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse, parse_float=_finite)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise InputError(f"{path} cannot be read: nested too deeply; expected a JSON object of few levels") from None
    # Of integers with more digits than Python converts too, which JSONDecodeError is not raised for.
    except ValueError as error:
        raise InputError(f"{path} cannot be read: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} cannot be read: it holds {type(value).__name__}; expected a JSON object")
    return value


def check_objects(folder: Path | str, names: tuple[str, ...]) -> None:
    """Check the files of ``names`` that a folder has, as ``read_object`` does.

    Raises:
        InputError: names the file.
    """
    for name in names:
        if (Path(folder) / name).exists():
            read_object(Path(folder) / name)


def check_weights(folder: Path | str) -> None:
    """Refuse a folder without weights that can be read safely.

    Raises:
        InputError: names the folder.
    """
    if not any(Path(folder).glob("*.safetensors")):
        raise InputError(
            f"model folder {folder} cannot be loaded: no .safetensors file in it; other weights, such as pickles, can "
            "run code and are not read: load them where you trust them and save them again with save_pretrained"
        )


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number
