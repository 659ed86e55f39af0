"""Row order and printed names of methods, patterns and variants, as in the paper."""

from __future__ import annotations

import re

from patch.learning.learning_settings import RAMPS
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

# Fine-tuning -> suffix of a method's printed name, in the order of rows.
FINETUNED = {"full": "fine-tuning", "lora": "LoRA"}
NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"

VariantOrder = tuple[tuple[str, float], ...]
RunOrder = tuple[bool, float, int, str, int, str, int, int, int, VariantOrder, str]


def method_title(method: str) -> str:
    """Return the printed name of a method; an unknown method keeps its name."""
    known = METHODS.get(method)
    return known.title if known else PAPER_METHODS.get(method, method)


def run_title(run: Run) -> str:
    """Return the printed name of a run's method, with fine-tuning after it: `Wanda + LoRA`."""
    title = method_title(run.method)
    return f"{title} + {FINETUNED[run.finetune]}" if run.finetune else title


def tile_title(tile: int) -> str:
    """Return the printed size of a tile."""
    return "matrix" if tile == WHOLE_MATRIX else f"{tile}×{tile}"


def pattern_kind(pattern: str) -> str:
    """Return the kind of a pattern: `dense`, `n:m`, `hybrid` or `unstructured`."""
    return "n:m" if ":" in pattern else pattern


def variant_title(variant: str) -> str:
    """Return the printed name of a variant: `frozen_mask=wanda` -> `frozen mask: Wanda`.

    A pair is printed as `4 to 0.05` if it is a ramp, else as `0.9 and 0.95`.
    """
    if variant.startswith(IMPORT):
        return f"imported: {variant.removeprefix(IMPORT)}"
    pairs = (pair.partition("=") for pair in variant.split(","))
    return ", ".join(f"{key.replace('_', ' ')}: {_value_title(key, value)}" for key, _, value in pairs)


def _value_title(key: str, value: str) -> str:
    if re.fullmatch(f"{NUMBER}(-{NUMBER})+", value):
        return (" to " if key in RAMPS else " and ").join(re.findall(NUMBER, value))
    return method_title(value)


def _variant_order(variant: str) -> VariantOrder:
    """Return a sort key that compares numbers by value: `lr=5e-05` before `lr=0.001`."""
    texts_and_numbers = re.split(f"({NUMBER})", variant)
    return tuple(zip(texts_and_numbers[::2], [*map(float, texts_and_numbers[1::2]), 0.0], strict=True))


def run_order(run: Run) -> RunOrder:
    """Return a sort key: dense first, then by falling sparsity, then methods as in the paper, unknown ones by name."""
    rank = 1 + list(QUANTIZATIONS).index(run.quantization) if run.quantization else 0
    tuned = 1 + list(FINETUNED).index(run.finetune) if run.finetune else 0
    kind = HARDWARE_ORDER.index(pattern_kind(run.pattern))
    method, variant = (paper_rank(run.method), run.method), run.variant or ""
    options = (kind, run.pattern, run.tile or 0, rank, tuned, _variant_order(variant), variant)
    return (run.pattern != "dense", -run.sparsity, *method, *options)


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with at most four significant digits: 0.45 -> `45`."""
    return f"{100 * fraction:.4g}"
