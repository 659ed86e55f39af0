"""Row and column selection of each table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from patch.pipeline.results.order import run_order
from patch.pipeline.results.record import ModelInfo
from patch.pipeline.runs.run import Run


@dataclass(frozen=True)
class Key:
    """Key of a table row, shared by runs of all models and seeds; ``method`` is `patch` for a model's own variant."""

    method: str
    pattern: str
    sparsity: float
    tile: int | None
    quantization: str | None
    variant: str | None

    @staticmethod
    def of(run: Run | tuple, model: ModelInfo) -> Key:
        """Return the key for a run or for a line of the tidy frame."""
        method = "patch" if run.method == f"patch-{model.variant}" else run.method
        optional = (run.tile, run.quantization, run.variant)
        tile, quantization, variant = (None if pd.isna(value) else value for value in optional)
        return Key(method, run.pattern, run.sparsity, None if tile is None else int(tile), quantization, variant)

    @property
    def order(self) -> tuple:
        """Sort key for the paper's row order."""
        return run_order(self)

    def row(self, model: ModelInfo) -> str:
        """Return `Run.row` of the model's runs with this key."""
        method = f"patch-{model.variant}" if self.method == "patch" else self.method
        return Run(model=model.name, **vars(self) | {"method": method}).row


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
    rows: Callable[[Key, set[float]], bool] = lambda key, unstructured: True
    columns: Literal["models", "tasks", "projections"] = "models"
    deviation: bool = False
    compared: bool = True


def _structured(key: Key, unstructured: set[float]) -> bool:
    return key.pattern != "unstructured" and not key.quantization


def _beside_unstructured(key: Key, unstructured: set[float]) -> bool:
    beside = key.pattern == "unstructured" or key.method.startswith("patch")
    return key.sparsity in unstructured and beside and not key.quantization


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
    "unstructured": Selection("Unstructured pruning beside PATCH at equal sparsity.", rows=_beside_unstructured),
    "quantized": Selection(
        "Quantised weights (group AbsMax) after pruning, without and with low-rank compensation (SLiM-LoRA).",
        rows=lambda key, unstructured: key.quantization is not None,
    ),
    "tasks": Selection("Accuracy (%) of each task.", columns="tasks"),
    "density": Selection(
        "Density (kept share in %) of each projection, mean over layers: where PATCH keeps weights.",
        rows=lambda key, unstructured: key.pattern == "hybrid" and not key.quantization,
        columns="projections",
        compared=False,
    ),
    "seeds": Selection(
        "Seeds of calibration and learning: mean and sample standard deviation.", deviation=True, compared=False
    ),
}

# Captions of tables that the grid defines. Other names get a generic caption.
CAPTIONS = {
    "tile_size": "Tile sizes of PATCH.",
    "target": "One density target for the whole model, or one for each layer.",
    "frozen_mask": "Frozen 2:4 masks under learned tiles, and patterns that are learned too.",
    "tile_prior": "What ranks the tiles when learning starts.",
    "imported": "Published masks, evaluated here.",
}


def selection(name: str) -> Selection:
    """Return the selection of a standard table, or of a table that the grid defines."""
    return TABLES.get(name) or Selection(CAPTIONS.get(name, f"Runs of the grid's table {name}."))
