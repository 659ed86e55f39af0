"""The methods of the tables: what each can do and what it needs. Light: read while the workflow is parsed."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from patch.errors import InputError, suggest

# The rows of the paper's tables; `patch` is the grid's word for the variant that a model's configuration names.
PAPER_ORDER = (
    "dense",
    "magnitude",
    "wanda",
    "sparsegpt",
    "thanos",
    "proxsparse",
    "maskllm",
    "patch",
    "patch-joint",
    "patch-tile",
)


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes:
        name: as in the configuration and in results.
        title: as printed.
        stage: the stage that makes its mask.
        patterns: kinds of patterns it can make: `dense`, `n:m` (any), `2:4` (no other), `unstructured`, `hybrid`.
        statistics: what it needs of a layer's input: nothing, `||x_j||^2` per column, or the Gram matrix.
        updates_weights: whether kept weights change too.
    """

    name: str
    title: str
    stage: Literal["none", "prune", "learn", "import"]
    patterns: tuple[str, ...]
    statistics: Literal["none", "norm", "gram"] = "none"
    updates_weights: bool = False

    @property
    def seeded(self) -> bool:
        """Whether the result depends on the seed (of calibration or learning)."""
        return self.stage == "learn" or self.statistics != "none"

    def makes(self, pattern: str) -> bool:
        """Whether it can make a pattern, `2:4`, `unstructured`, ..."""
        return pattern in self.patterns or (":" in pattern and "n:m" in self.patterns)


def one_shot_methods(folder: Path) -> list[Method]:
    """The methods of `patch/pruning`: each file that says `METHOD = Method(...)`.

    Read, not imported: a method needs torch, and this module is read while the workflow is parsed.

    Raises:
        InputError: what a file says is not a literal, or its name is not the file's.
    """
    found = []
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["METHOD"]:
                found.append(_method(path, node.value))
    return found


def _method(path: Path, value: ast.expr) -> Method:
    try:
        assert isinstance(value, ast.Call)
        arguments = [ast.literal_eval(argument) for argument in value.args]
        method = Method(*arguments, **{keyword.arg: ast.literal_eval(keyword.value) for keyword in value.keywords})
    except (AssertionError, ValueError, TypeError) as error:
        raise InputError(f"{path}: METHOD must be Method(...) with literal arguments ({error})") from None
    if method.name != path.stem or method.stage != "prune":
        raise InputError(
            f"{path}: METHOD is named {method.name!r} with stage {method.stage!r}; "
            f"use the file's name, {path.stem!r}, and 'prune'"
        )
    return method


def _all() -> dict[str, Method]:
    methods = [
        Method("dense", "Dense", "none", ("dense",)),
        *one_shot_methods(Path(__file__).parent / "pruning"),
        Method("proxsparse", "ProxSparse", "learn", ("2:4",)),
        Method("maskllm", "MaskLLM", "learn", ("2:4",)),
        Method("patch-joint", "PATCH (joint)", "learn", ("hybrid",)),
        Method("patch-tile", "PATCH (tile)", "learn", ("hybrid",)),
    ]
    return {method.name: method for method in sorted(methods, key=lambda method: paper_rank(method.name))}


def paper_rank(name: str) -> int:
    """Place of a method among the paper's rows; those that it does not have come after."""
    return PAPER_ORDER.index(name) if name in PAPER_ORDER else len(PAPER_ORDER)


METHODS: dict[str, Method] = _all()


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        InputError: there is no such method; says which are known.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise InputError(f"unknown method `{name}`; {suggest(name, [*METHODS, 'patch'])}") from None
