"""Keys of the transformers configuration of a model that is trained from scratch, without an import of transformers."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from patch.errors import InputError, suggest

# Keys that the tokenizer decides.
SPECIAL = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def check_config_keys(where: str, architecture: str, keys: Iterable[str]) -> None:
    """Check the keys of a model's configuration.

    Args:
        where: Dotted path of the configuration in the file, for messages.
        architecture: Model type of transformers.
        keys: Keys of the configuration.

    Raises:
        InputError: The configuration class of the architecture has no such key, or the tokenizer decides it.
    """
    own, common = config_keys(architecture)
    for key in keys:
        if key in SPECIAL:
            raise InputError(f"`{where}.{key}`: leave it out, since the tokenizer decides it")
        if key not in own and key not in common:
            raise InputError(
                f"unknown key `{where}.{key}` of a {architecture} model; "
                f"{suggest(str(key), [name for name in own if name not in SPECIAL])}"
            )


@cache
def config_keys(architecture: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of an architecture's configuration class, and those of the base class.

    The sources are parsed, because a dry run must not spend the seconds that an import of transformers takes.
    """
    folder = Path(find_spec("transformers").submodule_search_locations[0])
    family = architecture.removesuffix("_text")
    source = folder / "models" / family / f"configuration_{family}.py"
    own = _fields(source, lambda node: f"model_type = '{architecture}'" in map(ast.unparse, node.body))
    return own, _fields(folder / "configuration_utils.py", lambda node: node.name == "PreTrainedConfig")


def _fields(source: Path, wanted: Callable[[ast.ClassDef], bool]) -> tuple[str, ...]:
    """Return the fields of a dataclass in a file."""
    body = ast.parse(source.read_text(encoding="utf-8")).body
    (found,) = (node for node in body if isinstance(node, ast.ClassDef) and wanted(node))
    fields = [node for node in found.body if isinstance(node, ast.AnnAssign)]
    return tuple(node.target.id for node in fields if not ast.unparse(node.annotation).startswith("ClassVar"))
