"""Base class of settings sections, and validation whose messages name the wrong key and the valid values."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from patch.errors import InputError, suggest
from patch.files.plain import shown

T = TypeVar("T", bound=BaseModel)


class Section(BaseModel):
    """Frozen settings section that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def validate(model: type[T], raw: dict[str, Any], where: str = "") -> T:
    """Build a ``model`` from ``raw``.

    Args:
        model: Class of the section.
        raw: Values of its keys.
        where: Dotted path of ``raw`` in the file, for messages.

    Raises:
        InputError: A key or value is invalid; the message has one line for each error.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(fault, model, where, raw) for fault in error.errors()]
        raise InputError("configuration: " + "\n  ".join(lines)) from None


def _in_file(location: tuple[str | int, ...], raw: Any) -> list[str]:
    """Return ``location`` without the tags of unions, which are not keys of the file."""
    parts = []
    for index, part in enumerate(location):
        if isinstance(raw, dict) and part not in raw and index < len(location) - 1:
            continue
        parts.append(str(part))
        with suppress(LookupError, TypeError):
            raw = raw[part]
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
    """Return the field names of the section at ``location``, or an empty list if no section is found there."""
    current: list[Any] = [model]
    for part in location:
        following = []
        for section in current:
            field = section.model_fields.get(part)
            # Without a field, it is a name in a mapping, an index, or the tag of a union.
            following += _sections(field.annotation) if field else [section]
        tagged = [s for s in following if "kind" in s.model_fields and s.model_fields["kind"].default == part]
        current = tagged or following
    return sorted({name for section in current for name in section.model_fields})


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]
