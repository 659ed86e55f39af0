"""YAML -> Experiment, with messages that name the key, the value and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patch.errors import InputError
from patch.files.plain import check_plain, read_yaml
from patch.pipeline.config.experiment import Experiment
from patch.settings import validate

# The configuration that runs without `--configfile`.
DEFAULT_CONFIG = "config/demo.yaml"


def load_experiment(path: Path | str) -> Experiment:
    """Read and check one configuration file.

    Raises:
        InputError: the file is missing, is not YAML, or says something that is not allowed.
    """
    return validate_experiment(read_yaml(path))


def validate_experiment(raw: dict[str, Any]) -> Experiment:
    """Check a configuration that is already a dict.

    Raises:
        InputError: one line for each fault: the key, its value, and what would be right.
    """
    check_plain(raw)
    return validate(Experiment, extended(raw))


def extended(raw: dict[str, Any]) -> dict[str, Any]:
    """A configuration on top of the file that its key `extends` names: mappings are merged, all else is replaced.

    Raises:
        InputError: the file is missing or is not YAML, or the files go in a circle.
    """
    layers, seen = [raw], []
    while (base := layers[-1].get("extends")) is not None:
        if not isinstance(base, str):
            raise InputError(f"`extends` is {base!r}; give the path of a configuration, such as config/paper.yaml")
        if base in seen:
            raise InputError(f"`extends` goes in a circle: {' -> '.join([*seen, base])}")
        seen.append(base)
        layers.append(read_yaml(base))
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = _merged(merged, {key: value for key, value in layer.items() if key != "extends"})
    return merged


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict) else value
        for key, value in above.items()
    }
    return below | both
