"""YAML -> Experiment, with messages that name the key, the value and what would be right."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from patch.config.experiment import Experiment
from patch.config.plain import check_plain, read_plain, shown
from patch.errors import InputError

T = TypeVar("T", bound=BaseModel)

# Key of the templates that Snakemake's own reader evaluates.
TEMPLATE = "__use_yte__"


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read one configuration file without checking what it says.

    Raises:
        InputError: the file is missing or is not a mapping of plain YAML, see `read_plain`.
    """
    raw = read_plain(path, "configuration")
    if not isinstance(raw, dict):
        raise InputError(f"configuration {path} is {type(raw).__name__}; expected a mapping with the key `experiment`")
    if TEMPLATE in raw:
        raise InputError(f"configuration {path}: `{TEMPLATE}` makes Snakemake run code of the file; write values alone")
    return raw


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


def validate(model: type[T], raw: dict[str, Any], where: str = "") -> T:
    """Build ``model`` from ``raw``; ``where`` is the dotted path of ``raw`` in the file."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(fault, model, where, raw) for fault in error.errors()]
        raise InputError("configuration: " + "\n  ".join(lines)) from None


def suggest(word: str, known: list[str]) -> str:
    """What would be right instead of ``word``: the closest known word and the list of all."""
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"{hint}known: {', '.join(known)}"


def _in_file(location: tuple[str | int, ...], raw: Any) -> list[str]:
    """``location`` without the tags of unions, which are not keys of the file."""
    parts = []
    for index, part in enumerate(location):
        if isinstance(raw, dict) and part not in raw and index < len(location) - 1:
            continue
        parts.append(str(part))
        raw = (
            raw[part]
            if isinstance(raw, dict | list) and part in (raw if isinstance(raw, dict) else range(len(raw)))
            else None
        )
    return parts


def _explain(fault: dict[str, Any], model: type[BaseModel], where: str, raw: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join([*([where] if where else []), *_in_file(fault["loc"], raw)])
    if fault["type"] == "extra_forbidden":
        known = _fields(model, location[:-1])
        return f"unknown key `{key}`; {suggest(location[-1], known)}" if known else f"unknown key `{key}`"
    if fault["type"] == "missing":
        return f"`{key}` is missing"
    message = fault["msg"].removeprefix("Value error, ")
    return f"`{key}` is {shown(fault['input'])}: {message}" if fault["type"] != "value_error" else f"`{key}`: {message}"


def _fields(model: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the fields of the section at ``location``; empty where it cannot be told."""
    current: list[Any] = [model]
    for part in location:
        following = []
        for section in current:
            if part in section.model_fields:
                following += _sections(section.model_fields[part].annotation)
            elif part not in section.model_fields:
                following.append(section)  # a name in a mapping, an index, or the tag of a union
        current = following
        tagged = [s for s in current if "kind" in s.model_fields and s.model_fields["kind"].default == part]
        current = tagged or current
    return sorted({name for section in current for name in section.model_fields})


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]
