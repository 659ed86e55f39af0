"""The methods of the tables: what each can do and what it needs. Light: read while the workflow is parsed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from patch.config.load import suggest
from patch.errors import InputError


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
    stage: Literal["none", "prune", "learn"]
    patterns: tuple[str, ...]
    statistics: Literal["none", "norm", "gram"] = "none"
    updates_weights: bool = False

    @property
    def seeded(self) -> bool:
        """Whether the result depends on the seed (of calibration or learning)."""
        return self.stage == "learn" or self.statistics != "none"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "Dense", "none", ("dense",)),
        Method("magnitude", "Magnitude", "prune", ("n:m", "unstructured")),
        Method("wanda", "Wanda", "prune", ("n:m", "unstructured"), statistics="norm"),
        Method("sparsegpt", "SparseGPT", "prune", ("n:m", "unstructured"), statistics="gram", updates_weights=True),
        Method("maskllm", "MaskLLM", "learn", ("2:4",)),
        Method("patch-joint", "PATCH (joint)", "learn", ("hybrid",)),
        Method("patch-tile", "PATCH (tile)", "learn", ("hybrid",)),
    )
}


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        InputError: there is no such method; says which are known.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise InputError(f"unknown method `{name}`; {suggest(name, [*METHODS, 'patch'])}") from None
