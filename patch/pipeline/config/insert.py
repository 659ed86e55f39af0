"""Addition of a model to the text of a configuration file, whose other lines stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from patch.errors import InputError
from patch.files.plain import read_yaml


def block(values: dict[str, Any]) -> str:
    """Return values as lines of YAML, in the order of the keys."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def insert_model(path: Path, name: str, model: dict[str, Any], others: dict[str, Any]) -> str:
    """Return the text of a configuration file with one more model at the end of its `models`, and with other keys.

    Raises:
        InputError: the file has the name or one of the keys, or `models` is written in a way that cannot be extended.
    """
    before = read_yaml(path)
    taken = [*(key for key in others if key in before), *([name] if name in (before.get("models") or {}) else [])]
    if taken:
        raise InputError(f"{path} has `{taken[0]}`, which is not overwritten; choose another name by --name")
    text = path.read_bytes().decode()
    text += "" if text.endswith("\n") else "\n"
    lines = text.splitlines(keepends=True)
    found = [value for key, value in yaml.compose(text, yaml.SafeLoader).value if key.value == "models"]
    if not found:
        lines += ["\n", block({"models": {name: model}})]
    elif isinstance(found[0], yaml.MappingNode) and not found[0].flow_style:
        last = found[0].end_mark.line
        # A blank line or a comment before the next key belongs to that key.
        while last and lines[last - 1].strip()[:1] in ("", "#"):
            last -= 1
        margin = " " * found[0].start_mark.column
        lines[last:last] = [f"{margin}{line}" for line in block({name: model}).splitlines(keepends=True)]
    lines += ["\n", block(others)] if others else []
    after = "".join(lines)
    if _parsed(after) != before | {"models": (before.get("models") or {}) | {name: model}} | others:
        raise InputError(
            f"{path} cannot be extended, because of the way in which its `models` is written; add the block by hand, "
            "which the command without --configfile prints"
        )
    return after


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
