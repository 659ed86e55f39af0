"""Base class of settings sections, and validation whose messages name the wrong key and the valid values."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from patch.errors import InputError, suggest
from patch.files.plain import shown

T = TypeVar("T", bound=BaseModel)

Scalar = str | int | float  # bool is an int


class Section(BaseModel):
    """Frozen settings section that rejects unknown keys. A scalar is accepted for a list of scalars."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _list_scalars(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        fields = cls.model_fields
        return {key: _as_lists(fields[key].annotation, value) if key in fields else value for key, value in raw.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        reference = handler(core)
        for field in handler.resolve_ref_schema(reference).get("properties", {}).values():
            _allow_scalars(field)
        return reference


def _as_lists(annotation: Any, value: Any) -> Any:
    """Return ``value`` with a list of one element for each scalar where ``annotation`` has only a list."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is list:
        return [value] if isinstance(value, Scalar) and not _sections(arguments[0]) else value
    if origin is dict and isinstance(value, dict):
        return {key: _as_lists(arguments[1], entry) for key, entry in value.items()}
    if origin in (Union, UnionType):
        options = [get_args(option)[0] if get_origin(option) is Annotated else option for option in arguments]
        # Another option, such as text, takes a scalar as it is.
        if all(get_origin(option) in (list, dict) or option is NoneType for option in options):
            for option in options:
                value = _as_lists(option, value)
    return value


def _allow_scalars(field: JsonSchemaValue) -> None:
    """Add the type of the elements to each list in the JSON schema of a key, as `Section` accepts it."""
    if "anyOf" in field:
        for option in field["anyOf"]:
            _allow_scalars(option)
        options = field["anyOf"]
        field["anyOf"] = []
        for option in options:
            nested = option["anyOf"] if option.keys() == {"anyOf"} else [option]
            field["anyOf"] += [inner for inner in nested if inner not in field["anyOf"]]
    for values in (field.get("additionalProperties"), *field.get("patternProperties", {}).values()):
        if isinstance(values, dict):
            _allow_scalars(values)
    if field.get("type") == "array" and "$ref" not in field.get("items", {"$ref": ""}):
        keys = [key for key in ("type", "items", "minItems", "maxItems") if key in field]
        array = {key: field.pop(key) for key in keys}
        field["anyOf"] = [array["items"], array]


def validate(model: type[T], raw: dict[str, Any], where: str | Mapping[str, str] = "") -> T:
    """Build a ``model`` from ``raw``.

    Args:
        model: Class of the section.
        raw: Values of its keys.
        where: Dotted path of ``raw`` in the file, for messages; or that of each key's section, and under "" of all.

    Raises:
        InputError: A key or value is invalid; the message has one line for each error.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(fault, model, where, raw) for fault in error.errors()]
        raise InputError("configuration: " + "\n  ".join(lines)) from None


def _in_file(location: tuple[str | int, ...], raw: Any) -> list[str]:
    """Return ``location`` without the tags of unions and the indices of scalars, which are not keys of the file."""
    parts, tagged = [], False
    for index, part in enumerate(location):
        last = index == len(location) - 1
        # A tag may also be the name of a key, such as `files`; the tag comes first.
        if isinstance(raw, dict):
            kind = part == raw.get("kind") and not tagged
            # The place of a fault may end with the tag of a section, or with a key that is missing in it.
            if (kind and part not in raw) if last else (kind or part not in raw):
                tagged = True
                continue
        tagged = False
        # The name of a type in a union, such as `list[str]`, or the index in the list that a scalar stands for.
        if str(part).endswith("]") or isinstance(raw, Scalar):
            continue
        parts.append(str(part))
        with suppress(LookupError, TypeError):
            raw = raw[part]
    return parts


def _explain(fault: dict[str, Any], model: type[BaseModel], where: str | Mapping[str, str], raw: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    keys = _in_file(fault["loc"], raw)
    section = where if isinstance(where, str) else where.get(keys[0] if keys else "", where[""])
    key = ".".join([*([section] if section else []), *keys])
    if fault["type"] == "extra_forbidden":
        known = sorted({name for section in _sections_at(model, location[:-1]) for name in section.model_fields})
        return f"unknown key `{key}`; {suggest(location[-1], known)}" if known else f"unknown key `{key}`"
    if fault["type"] == "missing":
        return f"`{key}` is missing"
    if fault["type"] == "union_tag_not_found":
        return f"`{key}.kind` is missing; known: {', '.join(_kinds(model, location))}"
    if fault["type"] == "union_tag_invalid":
        return f"`{key}.kind` is {fault['ctx']['tag']!r}; {suggest(fault['ctx']['tag'], _kinds(model, location))}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "Input should be a mapping of keys to values"
    return f"`{key}` is {shown(fault['input'])}: {message}" if fault["type"] != "value_error" else f"`{key}`: {message}"


def _kinds(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return the kinds of the sections at ``location``."""
    return [section.model_fields["kind"].default for section in _sections_at(model, location)]


def _sections_at(model: type[BaseModel], location: list[str]) -> list[type[BaseModel]]:
    """Return the sections that the key at ``location`` may hold, or an empty list if it holds none."""
    current: list[Any] = [model]
    for part in location:
        kinds = [s for s in current if "kind" in s.model_fields and s.model_fields["kind"].default == part]
        if len(current) > 1 and kinds:  # the tag of a union
            current = kinds
            continue
        following = []
        for section in current:
            field = section.model_fields.get(part)
            # Without a field, it is a name in a mapping or an index.
            following += _sections(field.annotation) if field else [section]
        current = following
    return current


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]
