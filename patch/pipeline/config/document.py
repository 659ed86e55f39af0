"""Generator of config/README.md and config/schema.json: `python -m patch.pipeline.config.document`."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from patch.learning.settings import METHOD_DEFAULTS, Learning
from patch.methods import METHODS
from patch.pipeline.config.experiment import Experiment, LearningConfig
from patch.pipeline.config.introduction import INTRODUCTION
from patch.settings import Section

Found = dict[type[Section], list[str]]

FOLDER = Path("config")
# Description of the tag of a union, the only field without its own description.
KIND = "Which of the alternatives this is."
SIMPLE = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value"}
# Settings of a learning run are in plain mappings, which are merged before they are validated.
LEARNING_PATHS = ("learning.common", "learning.methods.<method>", "learning.overrides[].set")


def readme() -> str:
    """Return the text of config/README.md."""
    parts = [INTRODUCTION.replace("{methods}", _methods()).replace("{method_defaults}", _method_defaults())]
    parts += [_describe(section, paths) for section, paths in _sections(Experiment, "", {}).items()]
    return "\n\n".join(parts) + "\n"


def schema() -> str:
    """Return the text of config/schema.json, the JSON schema of a configuration file for editors."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | Experiment.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(run.replace("|", "\\|") for run in line) + " |" for line in lines)


def _methods() -> str:
    rows = []
    for method in METHODS.values():
        calibrated = "calibration text" if method.statistics != "none" else "-"
        needs = "training text" if method.stage == "learn" else calibrated
        rows.append([f"`{method.name}`", method.title, ", ".join(method.patterns), needs])
    return _table(["Method", "In tables", "Patterns", "Needs"], rows)


def _method_defaults() -> str:
    keys = [key for key in Learning.model_fields if any(key in values for values in METHOD_DEFAULTS.values())]
    defaults = {key: Learning.model_fields[key].default for key in keys}
    rows = [[f"`{key}`", *(_value((defaults | m)[key]) for m in METHOD_DEFAULTS.values())] for key in keys]
    return _table(["Key", *(f"`{method}`" for method in METHOD_DEFAULTS)], rows)


def _sections(section: type[Section], path: str, found: Found) -> Found:
    """Return ``section`` and every section below it with their dotted paths, in the order of the file."""
    paths = found.setdefault(section, [])
    if path not in paths:
        paths.append(path)
    for name, field in section.model_fields.items():
        for child, suffix in _children(field.annotation):
            _sections(child, f"{path}.{name}{suffix}".removeprefix("."), found)
    if section is LearningConfig:
        for learning_path in LEARNING_PATHS:
            _sections(Learning, learning_path, found)
    return found


def _children(annotation: Any) -> Iterator[tuple[type[Section], str]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, ""
        return
    suffix = {dict: ".<name>", list: "[]"}.get(get_origin(annotation), "")
    for argument in get_args(annotation):
        for section, rest in _children(argument):
            yield section, suffix + rest


def _describe(section: type[Section], paths: list[str]) -> str:
    fields = section.model_fields.items()
    rows = [[f"`{name}`", _type(f), _default(name, f), f.description or KIND] for name, f in fields]
    where = ", ".join(f"`{path}`" for path in paths if path) or "The file itself"
    heading = [f"### {section.__name__}", f"{where}. {inspect.getdoc(section)}"]
    return "\n\n".join([*heading, _table(["Key", "Type", "Default", "Meaning"], rows)])


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required() or name == "kind":
        return "required"
    if field.default is PydanticUndefined:
        return "empty" if field.default_factory in (dict, list) else "its defaults"
    return _value(field.default)


def _value(value: Any) -> str:
    return "none" if value is None else f"`{json.dumps(value)}`"


def _type(field: FieldInfo) -> str:
    text = _name(field.annotation)
    for bound in field.metadata:
        match bound:
            case Ge(ge=limit):
                text += f" ≥ {limit:g}"
            case Gt(gt=limit):
                text += f" > {limit:g}"
            case Le(le=limit):
                text += f" ≤ {limit:g}"
            case Lt(lt=limit):
                text += f" < {limit:g}"
            case MinLen(min_length=limit):
                text += f", at least {limit}"
            case MaxLen(max_length=limit):
                text += f", at most {limit}"
            case _ if pattern := getattr(bound, "pattern", None):
                text += f" like `{pattern}`"
    return text


def _name(annotation: Any) -> str:
    """Return the description of a type, with sections as links to their tables."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in SIMPLE:
        return SIMPLE[annotation]
    if origin is None:
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is Annotated:
        return _name(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_name(argument) for argument in arguments if argument is not type(None))
    if origin is list:
        return f"list of {_name(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} {_name(arguments[0])}s"
    if origin is dict:
        return f"mapping of {_name(arguments[0])} to {_name(arguments[1])}"
    raise TypeError(f"no words for the type {annotation!r}; add them here")


def main() -> None:
    """Write both files."""
    (FOLDER / "README.md").write_text(readme(), encoding="utf-8")
    (FOLDER / "schema.json").write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
