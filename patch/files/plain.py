"""Plain data: strict, bounded YAML, and the values that a configuration may hold."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from patch.errors import InputError
from patch.files.io import read_bytes

# Bounds far above any configuration; without them a few lines of aliases could expand without end.
LARGEST_FILE = 1_000_000  # bytes
MOST_VALUES = 20_000  # including expanded aliases
DEEPEST = 50  # nested lists and mappings
LONGEST = 4096  # characters of a string, such as a path
LARGEST_INTEGER = 2**63 - 1
# Unicode categories of controls, invisible marks, surrogates and line breaks.
UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Key whose string may hold any character: the characters to delete from a corpus.
ANY_CHARACTERS = "remove"
SHOWN = 80

_YAML = "tag:yaml.org,2002:"
_TAGS = {f"{_YAML}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge")}
KINDS = {f"{_YAML}int": "number", f"{_YAML}float": "number", f"{_YAML}timestamp": "date"}
# Exceptions of PyYAML for a value that does not fit its tag, such as `!!int ''`, `!!bool maybe` or 2024-99-99.
_UNFIT = (ValueError, ArithmeticError, LookupError, AttributeError, TypeError)


# Key that enables templates, which Snakemake's own reader evaluates.
TEMPLATE = "__use_yte__"


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read one configuration file without validation of its values.

    Raises:
        InputError: the file is missing, is not a mapping of plain YAML (see `read_plain`), or enables templates.
    """
    raw = read_plain(path, "configuration")
    if not isinstance(raw, dict):
        raise InputError(f"configuration {path} is {type(raw).__name__}; expected a mapping with the key `experiment`")
    if TEMPLATE in raw:
        raise InputError(f"configuration {path}: `{TEMPLATE}` makes Snakemake run code of the file; write values alone")
    return raw


def read_plain(path: Path | str, kind: str, drop_tags: bool = False) -> Any:
    """Read a YAML file of plain values.

    Args:
        path: the file.
        kind: name of the kind of file in messages.
        drop_tags: read values of tags such as `!function` as None instead of refusing them.

    Raises:
        InputError: the file is missing or not YAML, has a duplicate key, a recursive alias or a tag of a non-plain
            value, or exceeds a size limit; the message names the line.
    """
    where = f"{kind} {path}"
    content = read_bytes(path, where, LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise InputError(f"{where} has more than {LARGEST_FILE:,} bytes; it must be smaller")
    try:
        return _Loader(content.decode(), where, drop_tags).get_single_data()
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{where} is not YAML: {_syntax_fault(error, content)}") from None


def _syntax_fault(error: UnicodeDecodeError | yaml.YAMLError, content: bytes) -> str:
    """Return the line and the fault of a file that is not YAML."""
    if isinstance(error, yaml.MarkedYAMLError):
        fault, context, begun = error.problem, error.context or "", error.context_mark
        if context.startswith("while"):
            fault += f", {context}" + (f" that begins in line {begun.line + 1}" if begun else "")
        elif context:
            fault = f"{context} {fault}"
        return f"line {(error.problem_mark or begun).line + 1}: {fault}"
    if isinstance(error, UnicodeDecodeError):
        line, fault = content[: error.start].count(b"\n"), f"byte 0x{content[error.start]:02x} is not UTF-8"
    else:  # an unprintable character
        line = content.decode()[: error.position].count("\n")
        fault = f"character U+{error.character:04X} is not allowed"
    return f"line {line + 1}: {fault}"


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with checks of each composed node, before aliases and merges are expanded."""

    def __init__(self, text: str, where: str, drop_tags: bool) -> None:
        super().__init__(text)
        self._where, self._drop_tags = where, drop_tags
        self._level = self._count = 0
        # Number of values and nesting depth by node, including expanded aliases.
        self._extent: dict[yaml.Node, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        self._level += 1
        self._count += 1
        self._check_extent(event, self._count, self._level)
        node = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self._extent:
                self._refuse(event, f"the alias `*{event.anchor}` is inside the value that it repeats")
            return node
        self._check_tag(node)
        children = [child for entry in node.value for child in (entry if isinstance(entry, tuple) else (entry,))]
        inside = [self._extent[child] for child in children if isinstance(child, yaml.Node)]
        size, depth = 1 + sum(size for size, _ in inside), 1 + max((depth for _, depth in inside), default=0)
        self._check_extent(event, size, depth)
        self._extent[node] = size, depth
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _TAGS:
            return None
        try:
            return super().construct_object(node, deep)
        except InputError:
            raise
        except _UNFIT:
            kind = KINDS.get(node.tag, "value")
            self._refuse(node, f"{shown(node.value)} is not a valid {kind}; put text in quotes")

    def _check_extent(self, place: Any, size: int, depth: int) -> None:
        if size > MOST_VALUES:
            self._refuse(place, f"more than {MOST_VALUES:,} values, with what aliases repeat")
        if depth > DEEPEST:
            self._refuse(place, f"lists and mappings are deeper than {DEEPEST} in each other")

    def _check_tag(self, node: yaml.Node) -> None:
        own = node.tag.startswith("!") and self._drop_tags
        if node.tag not in _TAGS and not own:
            tag = node.tag.replace(_YAML, "!!")
            self._refuse(node, f"the tag `{tag}` makes no plain value; leave it out")
        # A base-60 number such as 1:00:00 parses in quadratic time.
        if node.tag != f"{_YAML}str" and isinstance(node.value, str) and len(node.value) > LONGEST:
            self._refuse(node, f"a value of {len(node.value):,} characters is not a number; put text in quotes")

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(key_node, "a key is a list or a mapping; keys are text")
            key = "<<" if key_node.tag.endswith(":merge") else self.construct_object(key_node)
            if key in seen:
                self._refuse(key_node, f"the key `{str(key)[:SHOWN]}` appears twice in one mapping; leave one")
            seen.add(key)

    def _refuse(self, place: Any, reason: str) -> NoReturn:
        raise InputError(f"{self._where}, line {place.start_mark.line + 1}: {reason}")


def check_plain(raw: Any) -> None:
    """Check that a configuration holds only plain values, in a bounded number.

    Raises:
        InputError: a value is invalid; the message names the key, the value and a correction.
    """
    _check(raw, (), iter(range(MOST_VALUES)))


def _check(value: Any, path: tuple[str, ...], left: Iterator[int]) -> None:
    key = ".".join(path)
    if next(left, None) is None:
        raise InputError(f"configuration: more than {MOST_VALUES:,} values, with what aliases repeat")
    if len(path) > DEEPEST:
        raise InputError(f"configuration: `{key[:SHOWN]}...` is deeper than {DEEPEST} lists and mappings")
    if isinstance(value, dict):
        for name, child in value.items():
            # Some models' configurations have integer keys; the sections refuse them.
            plain = isinstance(name, str | int) and not isinstance(name, bool)
            if fault := _fault(name, False) if plain else f"is {shown(name)}; write it in quotes, as text":
                raise InputError(f"configuration: a key of {f'`{key}`' if path else 'the file'} {fault}")
            _check(child, (*path, str(name)), left)
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            _check(child, (*path, str(index)), left)
    elif fault := _fault(value, path[-1:] == (ANY_CHARACTERS,)):
        raise InputError(f"configuration: `{key}` {fault}")


def _fault(value: Any, any_characters: bool) -> str:
    """Return the fault of a scalar value; empty if it is valid."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int):
        bits = value.bit_length()
        # The digits are not printed, since Python limits the length of such output.
        return f"is an integer of {bits} bits; use at most 63" if abs(value) > LARGEST_INTEGER else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"is {value}; give a finite number"
    if not isinstance(value, str):
        return f"is a {type(value).__name__}, which is no plain value; write it in quotes, as text"
    if len(value) > LONGEST:
        return f"is {shown(value)}: it has {len(value):,} characters; use at most {LONGEST:,}"
    unprintable = [] if any_characters else [char for char in value if unicodedata.category(char) in UNPRINTABLE]
    if unprintable:
        return f"is {shown(value)}: it holds U+{ord(unprintable[0]):04X}; use one line of printable text"
    return ""


def shown(value: Any) -> str:
    """Return a value's representation for messages, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
