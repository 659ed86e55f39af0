"""The paper's order of rows, and the names in it."""

from __future__ import annotations

from patch.methods import METHODS

# Name in the configuration -> name in the paper's tables, in the order of their rows. `patch` is the grid's
# word for the variant that a model's configuration names.
PAPER_METHODS: dict[str, str] = {
    "dense": "Dense",
    "magnitude": "Magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "thanos": "Thanos",
    "proxsparse": "ProxSparse",
    "maskllm": "MaskLLM",
    "patch": "PATCH",
    "patch-joint": "PATCH",
    "patch-tile": "PATCH",
}
HARDWARE_ORDER = ("dense", "n:m", "hybrid", "unstructured")

CellOrder = tuple[bool, float, int, str, int, str, int]


def method_title(method: str) -> str:
    """A method's name as printed; an unknown method keeps its own."""
    known = METHODS.get(method)
    return known.title if known else PAPER_METHODS.get(method, method)


def pattern_kind(pattern: str) -> str:
    """`dense`, `n:m`, `hybrid` or `unstructured`."""
    return "n:m" if ":" in pattern else pattern


def cell_order(method: str, pattern: str, sparsity: float, tile: int | None) -> CellOrder:
    """Sort key: dense, then the highest sparsity first, then methods as in the paper and unknown ones by name."""
    names = list(PAPER_METHODS)
    rank = names.index(method) if method in PAPER_METHODS else len(names)
    kind = HARDWARE_ORDER.index(pattern_kind(pattern))
    return (pattern != "dense", -sparsity, rank, method, kind, pattern, tile or 0)


def percent(share: float) -> str:
    """A share as a percentage without needless digits: 0.45 -> `45`."""
    return f"{100 * share:.4g}"
