"""Generator of the tables in config/README.md and of config/schema.json: `python -m patch.pipeline.config.document`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from patch.learning.learning_settings import METHOD_DEFAULTS, Learning
from patch.methods import METHODS
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.config.load import APPEND

README = Path("config/README.md")
SCHEMA = Path("config/schema.json")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
BOUNDS = {
    "minimum": " ≥ {}",
    "ge": " ≥ {}",
    "exclusiveMinimum": " > {}",
    "maximum": " ≤ {}",
    "le": " ≤ {}",
    "minItems": ", at least {}",
    "pattern": " like `{}`",
}
# Sections of a learning run are plain mappings in the schema, because they are merged before they are validated.
LEARNING_PATHS = ["learning.common", "learning.methods.<method>", "learning.overrides[].set"]

JsonSchema = dict[str, Any]


def readme(text: str) -> str:
    """Return ``text``, the contents of config/README.md, with new tables between its markers."""
    for name, make in {"methods": _methods, "defaults": _method_defaults, "keys": _keys}.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        text = re.sub(f"(?<={begin}).*?(?={end})", lambda _, make=make: f"\n{make()}\n\n", text, flags=re.DOTALL)
    return text


def schema() -> str:
    """Return the text of config/schema.json, the JSON schema of a configuration file for editors."""
    whole = Experiment.model_json_schema()
    sections = {"Experiment": whole} | whole["$defs"]
    fields = [field for section in sections.values() for field in section["properties"].items()]
    # The loader replaces lists with everything in them.
    inside = {name for key, field in fields for name, path in _references(field, key) if path.endswith("[]")}
    for name in sections.keys() - inside:
        sections[name]["properties"] |= _appending(sections[name]["properties"])
    return json.dumps({"$schema": DIALECT} | whole, indent=2, ensure_ascii=False) + "\n"


def _appending(fields: dict[str, JsonSchema]) -> dict[str, JsonSchema]:
    """Return the keys `KEY+` of a section, for each of its keys with a list."""
    found = {}
    for key, field in fields.items():
        options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
        if any(option.get("type") == "array" and "items" in option for option in options):
            about = f"Appended to the list `{key}` of the base."
            found[f"{key}{APPEND}"] = {"anyOf": options, "description": about}
    return found


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(entry.replace("|", "\\|") for entry in line) + " |" for line in lines)


def _methods() -> str:
    rows = []
    for method in METHODS.values():
        if method.package:
            continue
        calibrated = "calibration text" if method.statistics != "none" else "-"
        needs = "training text" if method.stage == "learn" else calibrated
        rows.append([f"`{method.name}`", method.title, ", ".join(method.patterns), needs])
    return _table(["Method", "Title in tables", "Patterns", "Needs"], rows)


def _method_defaults() -> str:
    keys = [key for key in Learning.model_fields if any(key in values for values in METHOD_DEFAULTS.values())]
    defaults = {key: Learning.model_fields[key].default for key in keys}
    rows = [[f"`{key}`", *(_value((defaults | m)[key]) for m in METHOD_DEFAULTS.values())] for key in keys]
    return _table(["Key", *(f"`{method}`" for method in METHOD_DEFAULTS)], rows)


def _keys() -> str:
    """Return a heading and a table for every section, in the order of the file."""
    _, both = models_json_schema([(Experiment, "validation"), (Learning, "validation")])
    sections = both["$defs"]
    paths: dict[str, list[str]] = {}

    def visit(name: str, path: str) -> None:
        paths.setdefault(name, []).append(path)
        for key, field in sections[name]["properties"].items():
            for child, child_path in _references(field, f"{path}.{key}".removeprefix(".")):
                visit(child, child_path)
        if name == "LearningConfig":
            for learning_path in LEARNING_PATHS:
                visit("Learning", learning_path)

    visit("Experiment", "")
    return "\n\n".join(_describe(sections[name], found) for name, found in paths.items())


def _references(field: JsonSchema, path: str) -> Iterator[tuple[str, str]]:
    """Yield the sections that the key at ``path`` may hold, each with its own path."""
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2], path
    for option in field.get("anyOf", field.get("oneOf", [])):
        yield from _references(option, path)
    if "items" in field:
        yield from _references(field["items"], f"{path}[]")
    for values in _mapping_values(field):
        yield from _references(values, f"{path}.<name>")


def _mapping_values(field: JsonSchema) -> list[JsonSchema]:
    values = [field.get("additionalProperties"), *field.get("patternProperties", {}).values()]
    return [value for value in values if isinstance(value, dict)]


def _describe(section: JsonSchema, paths: list[str]) -> str:
    required = [*section.get("required", []), "kind"]
    rows = [
        [f"`{key}`", _type(field), _default(field, key in required), field.get("description", "Type of this section.")]
        for key, field in section["properties"].items()
    ]
    where = ", ".join(f"`{path}`" for path in dict.fromkeys(paths) if path) or "Top level"
    heading = f"### {section['title']}\n\n{where}. {section['description']}"
    return f"{heading}\n\n{_table(['Key', 'Type', 'Default', 'Meaning'], rows)}"


def _default(field: JsonSchema, required: bool) -> str:
    if required:
        return "required"
    if "default" in field:
        return _value(field["default"])
    return "its defaults" if "$ref" in field else "empty"


def _value(value: Any) -> str:
    return "none" if value is None else f"`{json.dumps(value)}`"


def _type(field: JsonSchema) -> str:
    """Return the description of a type, with sections as links to their tables."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := field.get("enum", [field["const"]] if "const" in field else []):
        return " or ".join(f"`{choice}`" for choice in choices)
    if options := field.get("anyOf", field.get("oneOf")):
        # A scalar that stands for a list of one element is described once for all lists, above the tables.
        elements = [option["items"] for option in options if "items" in option]
        names = [_type(option) for option in options if option.get("type") != "null" and option not in elements]
        return " or ".join(names)
    if "prefixItems" in field:
        return f"{len(field['prefixItems'])} {_type(field['prefixItems'][0])}s"
    if field.get("type") == "array":
        text = f"list of {_type(field['items'])}"
    elif field.get("type") == "object":
        values = " or ".join(map(_type, _mapping_values(field))) or "any value"
        return f"mapping of {_type(field.get('propertyNames', {}))} to {values}"
    else:
        text = TYPES[field.get("type", "string")]
    return text + "".join(words.format(field[bound]) for bound, words in BOUNDS.items() if bound in field)


def main() -> None:
    """Write both files."""
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
