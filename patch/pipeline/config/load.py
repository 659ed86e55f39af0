"""Loading of configurations from YAML, with messages that name the key, its value and the valid values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patch.errors import InputError
from patch.files.plain import check_plain, read_yaml
from patch.pipeline.config.experiment import Experiment
from patch.settings import validate

# Configuration that is used without `--configfile`.
DEFAULT_CONFIG = "config/demo.yaml"


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


def extended(raw: dict[str, Any], seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a configuration merged with the file that its key `extends` names, recursively.

    Mappings are merged; all other values of the configuration replace those of the file. ``seen`` are the files that
    extend this one.

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
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in changes.items()
    }
    return base | both
