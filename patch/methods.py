"""Methods of the result tables, with their capabilities and requirements.

This module does not import torch, because Snakemake loads it while it parses the workflow.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from patch.errors import InputError, suggest

# Order of the rows in the paper's tables. In a grid, `patch` selects the variant that the model's configuration names.
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
    """A pruning or mask-learning method, which is one row of the result tables.

    Attributes:
        name: Name in the configuration and in the results.
        title: Name in printed tables.
        stage: Stage that makes the mask.
        patterns: Supported kinds of patterns: `dense`, `n:m` (any N:M), `2:4` (only 2:4), `unstructured`, `hybrid`.
        statistics: Required statistics of a layer's input: none, `||x_j||^2` per column, or the Gram matrix.
        updates_weights: True if the method also changes the kept weights.
    """

    name: str
    title: str
    stage: Literal["none", "prune", "learn", "import"]
    patterns: tuple[str, ...]
    statistics: Literal["none", "norm", "gram"] = "none"
    updates_weights: bool = False

    @property
    def seeded(self) -> bool:
        """Return whether the result depends on the seed of calibration or learning."""
        return self.stage == "learn" or self.statistics != "none"

    def makes(self, pattern: str) -> bool:
        """Return whether the method supports a pattern such as `2:4` or `unstructured`."""
        return pattern in self.patterns or (":" in pattern and "n:m" in self.patterns)


def one_shot_methods(folder: Path) -> list[Method]:
    """Return the one-shot methods of a folder: one for each file that assigns `METHOD = Method(...)`.

    The files are parsed and not imported, because importing them would import torch.

    Raises:
        InputError: An argument of `Method(...)` is not a literal, the method's name is not the file's name, or its
            stage is not `prune`.
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


def paper_rank(name: str) -> int:
    """Return the position of a method among the paper's rows; methods that the paper does not have come last."""
    return PAPER_ORDER.index(name) if name in PAPER_ORDER else len(PAPER_ORDER)


_KNOWN = [
    Method("dense", "Dense", "none", ("dense",)),
    *one_shot_methods(Path(__file__).parent / "pruning"),
    Method("proxsparse", "ProxSparse", "learn", ("2:4",)),
    Method("maskllm", "MaskLLM", "learn", ("2:4",)),
    Method("patch-joint", "PATCH (joint)", "learn", ("hybrid",)),
    Method("patch-tile", "PATCH (tile)", "learn", ("hybrid",)),
    Method("maskpro", "MaskPro", "learn", ("2:4",)),
]
METHODS = {method.name: method for method in sorted(_KNOWN, key=lambda method: paper_rank(method.name))}


def get_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        InputError: No method has this name; the message lists the known names.
    """
    if name not in METHODS:
        raise InputError(f"unknown method `{name}`; {suggest(name, [*METHODS, 'patch'])}")
    return METHODS[name]
