"""Loading of configurations from YAML, with messages that name the key, its value and the valid values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from patch.errors import InputError
from patch.files.plain import check_plain, read_yaml
from patch.pipeline.config.experiment import Experiment
from patch.settings import validate

# Configuration that is used without `--configfile`.
DEFAULT_CONFIG = "config/demo.yaml"
# Spellings of YAML's null.
NULLS = ("null", "Null", "NULL", "~")


def load_experiment(path: Path | str) -> Experiment:
    """Read and check one configuration file.

    Raises:
        InputError: The file is missing, is not YAML, or has an invalid key or value.
    """
    return validate_experiment(read_yaml(path))


def validate_experiment(raw: dict[str, Any]) -> Experiment:
    """Check a configuration that is a dict, and return it as an `Experiment`.

    Raises:
        InputError: A key or value is invalid; the message has a line for each error with the valid values.
    """
    check_plain(raw)
    return validate(Experiment, extended(raw))


def read_configuration(paths: Sequence[Path | str], changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the values of configuration files and of the files that they extend, merged.

    Args:
        paths: Files, later ones on top.
        changes: Values on top of all files, as Snakemake reads them from `--config`.

    Raises:
        InputError: A file is missing or is not YAML, or the files extend each other in a cycle.
    """
    return extended(reduce(_merged, [*map(read_yaml, paths), _with_nulls(changes or {})], {}))


def _with_nulls(value: Any) -> Any:
    """Return a value of `--config`, which Snakemake reads as YAML without types, with None for each null."""
    if isinstance(value, dict):
        return {key: _with_nulls(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_with_nulls(child) for child in value]
    return None if value in NULLS else value


def extended(raw: dict[str, Any], seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a configuration merged with the file that its key `extends` names, recursively.

    Mappings are merged, unless their `kind` differs; all other values of the configuration replace those of the file.
    ``seen`` are the files that extend this one.

    Raises:
        InputError: A file is missing or is not YAML, or the files extend each other in a cycle.
    """
    own = {key: value for key, value in raw.items() if key != "extends"}
    base = raw.get("extends")
    if base is None:
        return own
    if not isinstance(base, str):
        raise InputError(f"`extends` is {base!r}; give the path of a configuration, such as config/paper.yaml")
    if base in seen:
        raise InputError(f"`extends` forms a cycle: {' -> '.join([*seen, base])}")
    return _merged(extended(read_yaml(base), (*seen, base)), own)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], value) if _is_change(base.get(key), value) else value for key, value in changes.items()
    }
    return base | both


def _is_change(base: Any, value: Any) -> bool:
    """Return whether a value changes keys of that of the base; a section of another kind replaces it."""
    if not isinstance(base, dict) or not isinstance(value, dict):
        return False
    return "kind" not in base or "kind" not in value or base["kind"] == value["kind"]
