"""Loading of configurations from YAML, with messages that name the key, its value and the valid values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from patch.errors import InputError
from patch.files.plain import check_plain, read_yaml
from patch.pipeline.config.experiment import Experiment
from patch.settings import Scalar, validate

# Configuration that is used without `--configfile`.
DEFAULT_CONFIG = "config/demo.yaml"
# Spellings of YAML's null.
NULLS = ("null", "Null", "NULL", "~")
# End of a key whose list is appended to that of the base.
APPEND = "+"


def load_experiment(path: Path | str) -> Experiment:
    """Read and check one configuration file.

    Raises:
        InputError: The file is missing, is not YAML, or has an invalid key or value.
    """
    return validate_experiment(read_configuration([path]))


def validate_experiment(raw: dict[str, Any]) -> Experiment:
    """Check a merged configuration, and return it as an `Experiment`.

    Raises:
        InputError: A key or value is invalid; the message has a line for each error with the valid values.
    """
    check_plain(raw)
    if raw.get("extends") is not None:
        raise InputError("configuration: `extends` belongs into a file; give several files by `--configfile` instead")
    return validate(Experiment, raw)


def read_configuration(paths: Sequence[Path | str], changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the values of configuration files and of the files that they extend, merged.

    Each file is merged on top of the one that its key `extends` names, and of the files before it in ``paths``; a base
    of several files counts once. Mappings are merged, unless their `kind` differs; the list of a key `KEY+` is appended
    to that of `KEY`; all other values are replaced.

    Args:
        paths: Files, later ones on top.
        changes: Values on top of all files, as Snakemake reads them from `--config`.

    Raises:
        InputError: A file is missing or is not YAML, the files extend each other in a cycle, or there is no list to
            append to.
    """
    layers: dict[Path, dict[str, Any]] = {}
    for path in paths:
        _add_layers(Path(path), layers, ())
    return reduce(_merged, [*layers.values(), _with_nulls(changes or {})], {})


def _with_nulls(value: Any) -> Any:
    """Return a value of `--config`, which Snakemake reads as YAML without types, with None for each null."""
    if isinstance(value, dict):
        return {key: _with_nulls(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_with_nulls(child) for child in value]
    return None if value in NULLS else value


def _add_layers(path: Path, layers: dict[Path, dict[str, Any]], extending: tuple[Path, ...]) -> None:
    """Add the values of a file to ``layers``, after those of its bases; ``extending`` are the files that extend it."""
    key = path.resolve()
    if key in (one.resolve() for one in extending):
        raise InputError(f"`extends` forms a cycle: {' -> '.join(map(str, [*extending, path]))}")
    if key in layers:
        return
    raw = read_yaml(path)
    base = raw.pop("extends", None)
    if base is not None:
        _add_layers(_base_path(path, base), layers, (*extending, path))
    layers[key] = raw


def _base_path(path: Path, base: Any) -> Path:
    if not isinstance(base, str):
        raise InputError(f"configuration {path}: `extends` is {base!r}; give the path of a configuration")
    found = path.parent / base
    if not found.exists():
        raise InputError(
            f"configuration {path}: `extends` is {base!r}, but {found}: no such file; the path starts in the folder of "
            "the file that contains it"
        )
    return found


def _merged(base: dict[str, Any], changes: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Return ``base`` with ``changes``; ``where`` is the path of both in the file, for messages."""
    merged = dict(base)
    for key, value in changes.items():
        path = f"{where}{key}"
        if isinstance(key, str) and key.endswith(APPEND):
            merged[key.removesuffix(APPEND)] = _appended(base, changes, key, path)
        elif isinstance(value, dict):
            below = base.get(key)
            merged[key] = _merged(below if _is_change(below, value) else {}, value, f"{path}.")
        else:
            merged[key] = value
    return merged


def _is_change(base: Any, value: Any) -> bool:
    """Return whether a value changes keys of that of the base; a section of another kind replaces it."""
    if not isinstance(base, dict) or not isinstance(value, dict):
        return False
    return "kind" not in base or "kind" not in value or base["kind"] == value["kind"]


def _appended(base: dict[str, Any], changes: dict[str, Any], key: str, path: str) -> list[Any]:
    plain = key.removesuffix(APPEND)
    if plain in changes:
        raise InputError(f"configuration: one file has `{path}` and `{path.removesuffix(APPEND)}`; leave one")
    lists = []
    for name, value in ((path.removesuffix(APPEND), base.get(plain)), (path, changes[key])):
        # A list with one number or word can be written without brackets.
        lists.append([value] if isinstance(value, Scalar) else value)
        if not isinstance(lists[-1], list):
            reason = "is missing in the base" if value is None and name != path else f"is no list but {value!r:.80}"
            raise InputError(f"configuration: `{path}` appends one list to another, but `{name}` {reason}")
    return lists[0] + lists[1]
