"""Row order and printed names of methods, patterns and variants, as in the paper."""

from __future__ import annotations

from patch.masks.pattern import WHOLE_MATRIX
from patch.methods import METHODS, PAPER_ORDER, paper_rank
from patch.pipeline.runs.run import IMPORT, Run

# Configuration names -> names in the paper's tables, in the order of their rows.
PAPER_METHODS: dict[str, str] = {
    name: "PATCH" if name.startswith("patch") else METHODS[name].title for name in PAPER_ORDER
}
HARDWARE_ORDER = ("dense", "n:m", "hybrid", "unstructured")

# Quantization -> printed name, in the order of rows.
QUANTIZATIONS = {"absmax": "AbsMax", "slim-lora": "AbsMax + SLiM-LoRA"}

RunOrder = tuple[bool, float, int, str, int, str, int, int, str]


def method_title(method: str) -> str:
    """Return the printed name of a method; an unknown method keeps its name."""
    known = METHODS.get(method)
    return known.title if known else PAPER_METHODS.get(method, method)


def tile_title(tile: int) -> str:
    """Return the printed size of a tile."""
    return "matrix" if tile == WHOLE_MATRIX else f"{tile}×{tile}"


def pattern_kind(pattern: str) -> str:
    """Return the kind of a pattern: `dense`, `n:m`, `hybrid` or `unstructured`."""
    return "n:m" if ":" in pattern else pattern


def variant_title(variant: str) -> str:
    """Return the printed name of a variant: `frozen_mask=wanda` -> `frozen mask: Wanda`."""
    if variant.startswith(IMPORT):
        return f"imported: {variant.removeprefix(IMPORT)}"
    pairs = (pair.partition("=") for pair in variant.split(","))
    return ", ".join(f"{key.replace('_', ' ')}: {method_title(value)}" for key, _, value in pairs)


def run_order(run: Run) -> RunOrder:
    """Return a sort key: dense first, then by falling sparsity, then methods as in the paper, unknown ones by name."""
    rank = 1 + list(QUANTIZATIONS).index(run.quantization) if run.quantization else 0
    kind = HARDWARE_ORDER.index(pattern_kind(run.pattern))
    method = (paper_rank(run.method), run.method)
    return (run.pattern != "dense", -run.sparsity, *method, kind, run.pattern, run.tile or 0, rank, run.variant or "")


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with at most four significant digits: 0.45 -> `45`."""
    return f"{100 * fraction:.4g}"
