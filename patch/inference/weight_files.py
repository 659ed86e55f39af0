"""Headers of a packed model's weight files, checked against its description before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from patch.errors import InputError
from patch.files.io import read_json_object
from patch.inference.packed_config import PackedConfig, TensorSpec

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Names of safetensors -> PyTorch's.
DTYPES = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
DTYPES |= {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FLOATS = ("float64", "float32", "float16", "bfloat16")


class StoredTensor(NamedTuple):
    """Dtype, shape and file of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]
    path: Path


def weight_files(folder: Path | str) -> list[Path]:
    """Return the paths of the weight files of a model folder: those of its index, or the single one.

    Raises:
        InputError: the index is damaged.
    """
    folder = Path(folder)
    if not (folder / INDEX).exists():
        names = {WEIGHTS}
    else:
        index = read_json_object(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise InputError(f"{folder / INDEX}: weight_map is not an object of file names")
        names = set(index.values())
        if odd := sorted(name for name in names if Path(name).name != name):
            raise InputError(f"{folder / INDEX}: {odd[0]!r:.200} is not the name of a file in the folder")
    return sorted(folder / name for name in names)


def read_headers(files: Iterable[Path | str]) -> dict[str, StoredTensor]:
    """Return dtype, shape and file of each tensor in safetensors files, without reading weights.

    Raises:
        InputError: a file is missing, truncated or not of safetensors, or two files have a tensor of the same name.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, StoredTensor] = {}
    for path in map(Path, files):
        try:
            with safe_open(path, "np") as file:
                names = list(file.keys())
                slices = [file.get_slice(name) for name in names]
                new = {
                    name: StoredTensor(DTYPES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape()), path)
                    for name, part in zip(names, slices, strict=True)
                }
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; copy the whole folder of the model") from None
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: truncated or not a safetensors file ({reason})") from None
        if twice := sorted(new.keys() & found.keys()):
            raise InputError(f"{path}: {twice[0]!r:.200} is also in {found[twice[0]].path.name}")
        found |= new
    return found


def check_stored(stored: Mapping[str, StoredTensor], expected: Mapping[str, TensorSpec], where: object) -> None:
    """Check that each expected tensor is stored with its shape and dtype.

    Args:
        stored: result of `read_headers`.
        expected: name -> shape and dtype; None for any floating-point dtype.
        where: name of the model in messages about a missing tensor.

    Raises:
        InputError: names the first tensor that is missing or different.
    """
    for name, (shape, dtype) in expected.items():
        if name not in stored:
            raise InputError(f"{where}: its weight files lack {name}")
        found = stored[name]
        if found.shape != shape:
            raise InputError(f"{found.path}: {name} has the shape {list(found.shape)}; config.json needs {list(shape)}")
        if found.dtype not in ((dtype,) if dtype else FLOATS):
            needed = dtype or "floating-point numbers"
            raise InputError(f"{found.path}: {name} has the dtype {found.dtype}; expected {needed}")


def check_folder(folder: Path | str, config: PackedConfig) -> None:
    """Check the headers of a folder's weight files against the description of its packed layers.

    Raises:
        InputError: a file or a tensor of a packed layer is missing or damaged, or a packed layer has another tensor.
    """
    stored, expected = read_headers(weight_files(folder)), config.tensors()
    check_stored(stored, expected, folder)
    for name, found in stored.items():
        layer, _, part = name.rpartition(".")
        if layer in config.layers and part != "bias" and name not in expected:
            raise InputError(f"{found.path}: {name!r:.200} is not a tensor of a packed layer")
