"""Row and column selection of each table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from patch.pipeline.runs.run import ModelInfo, Run


@dataclass(frozen=True)
class Selection:
    """Contents of a table.

    Attributes:
        caption: text above the table.
        models: predicate that selects models.
        rows: predicate that selects rows, given the sparsities that have unstructured rows.
        columns: `models` has accuracy and perplexity columns for each model. With `tasks` and `projections`, each row
            names its model, and the columns are task accuracies or projection densities.
        deviation: True to print the standard deviation over seeds, only for rows with several seeds.
        compared: True to print the best values in bold.
    """

    caption: str
    models: Callable[[ModelInfo], bool] = lambda model: True
    rows: Callable[[Run, set[float]], bool] = lambda run, unstructured: True
    columns: Literal["models", "tasks", "projections"] = "models"
    deviation: bool = False
    compared: bool = True


def _structured(run: Run, unstructured: set[float]) -> bool:
    return run.pattern != "unstructured" and not run.quantization


def _beside_unstructured(run: Run, unstructured: set[float]) -> bool:
    compared = run.pattern == "unstructured" or run.method.startswith("patch")
    return run.sparsity in unstructured and compared and not run.quantization


TABLES: dict[str, Selection] = {
    "joint": Selection(
        "Accuracy and perplexity: 2:4 methods and PATCH with learned patterns (joint).",
        lambda model: model.variant == "joint",
        _structured,
    ),
    "tile": Selection(
        "Accuracy and perplexity: 2:4 methods and PATCH over a frozen 2:4 mask (tile).",
        lambda model: model.variant == "tile",
        _structured,
    ),
    "unstructured": Selection("Unstructured pruning and PATCH at equal sparsity.", rows=_beside_unstructured),
    "quantized": Selection(
        "Weights quantized (group AbsMax) after pruning, without and with low-rank compensation (SLiM-LoRA).",
        rows=lambda run, unstructured: run.quantization is not None,
    ),
    "tasks": Selection("Accuracy (%) of each task.", columns="tasks"),
    "density": Selection(
        "Density (kept fraction in %) of each projection under PATCH, mean over layers.",
        rows=lambda run, unstructured: run.pattern == "hybrid" and not run.derived,
        columns="projections",
        compared=False,
    ),
    "seeds": Selection(
        "Mean and sample standard deviation over the seeds of calibration and learning.", deviation=True, compared=False
    ),
}

# Captions of tables that the grid defines. Other names get a generic caption.
CAPTIONS = {
    "tile_size": "Tile sizes of PATCH.",
    "target": "One density target for the whole model, or one for each layer.",
    "frozen_mask": "Learned tiles over frozen 2:4 masks, and tiles learned together with the patterns.",
    "tile_prior": "Initial ranking of the tiles when mask learning starts.",
    "nm_25": "Patterns with 25 % zeros: 3:4 and 6:8 groups, PATCH, and unstructured pruning.",
    "baselines": "Pruning methods that the paper does not compare with, beside those that it does.",
    "finetune": "Pruned models before and after fine-tuning under their masks.",
    "imported": "Published masks, evaluated in this experiment.",
}


def selection(name: str) -> Selection:
    """Return the selection of a standard table, or of a table that the grid defines."""
    return TABLES.get(name) or Selection(CAPTIONS.get(name, f"Runs of the table {name}, which the grid defines."))
