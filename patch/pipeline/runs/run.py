"""A run of a grid, its name, and the format of the parts of the name."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from patch.files.schema import Count, Name, Positive, Schema
from patch.learning.finetuning_settings import Kind
from patch.masks.pattern import WHOLE_MATRIX, parse_nm
from patch.methods import Method, get_method

IMPORT = "import="


def format_sparsity(value: float) -> str:
    """Format a sparsity for ids and paths."""
    return f"{value:.6g}"


def format_tile(tile: int) -> str:
    """Format the side of a tile for ids and labels."""
    return "matrix" if tile == WHOLE_MATRIX else str(tile)


class Run(Schema):
    """One run: a model that is pruned by one method with one set of options.

    This is the one schema of a run, from the grid to the settings of the stages, the records and the tables.

    Attributes:
        model: Name under `models`.
        method: Name in `patch.methods`.
        pattern: `dense`, `N:M`, `unstructured` or `hybrid` (dense tiles among 2:4 tiles).
        sparsity: Target fraction of zeros in the prunable layers.
        tile: Side of a tile for `hybrid`, else None.
        seed: Seed of calibration and learning, or 0 if the result depends on neither.
        quantization: `absmax` or `slim-lora` if the weights are quantized after pruning, else None.
        finetune: `full` or `lora` if the kept weights are fine-tuned after pruning, else None.
        variant: `key=value` of a learning setting that an ablation varies, `import=name` for an imported mask, or
            None.
    """

    model: Name
    method: Name
    pattern: str
    sparsity: float = Field(ge=0, lt=1)
    tile: Positive | None = None
    seed: Count = 0
    quantization: Literal["absmax", "slim-lora"] | None = None
    finetune: Kind | None = None
    variant: Name | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Run:
        """Check that the pattern, the tile, the sparsity and the stages after pruning agree."""
        if self.finetune and (self.quantization or self.pattern == "dense"):
            other = f"quantized by {self.quantization}" if self.quantization else "dense"
            raise ValueError(f"`finetune` is {self.finetune} for a run that is {other}; leave it out")
        if (self.tile is None) == (self.pattern == "hybrid"):
            raise ValueError(f"`tile` is {self.tile} for the pattern {self.pattern[:80]!r}; hybrid alone has tiles")
        if self.pattern not in ("hybrid", "unstructured"):
            expected = 0.0 if self.pattern == "dense" else nm_sparsity(self.pattern)
            if format_sparsity(self.sparsity) != format_sparsity(expected):
                raise ValueError(f"`sparsity` is {self.sparsity}; the pattern {self.pattern!r} has {expected:.6g}")
        return self

    @property
    def id(self) -> str:
        """Name of the run within its model, safe in a path: `patch-joint_hybrid_0.45_t16_s0`."""
        return self._name(f"_s{self.seed}")

    @property
    def row(self) -> str:
        """Name of the table row, which all seeds share: `patch-joint_hybrid_0.45_t16`."""
        return self._name("")

    def _name(self, seed: str) -> str:
        tile = f"_t{format_tile(self.tile)}" if self.tile else ""
        pattern = self.pattern.replace(":", "of")
        after = f"_{self.quantization}" if self.quantization else ""
        after += f"_finetune-{self.finetune}" if self.finetune else ""
        variant = f"_{self.variant}" if self.variant else ""
        return f"{self.method}_{pattern}_{format_sparsity(self.sparsity)}{tile}{variant}{seed}{after}"

    @property
    def pruned(self) -> Run:
        """Run before quantization or fine-tuning, whose mask and weights this run uses."""
        seed = self.seed if self.definition.seeded else 0
        return self.model_copy(update={"quantization": None, "finetune": None, "seed": seed})

    @property
    def derived(self) -> bool:
        """Return whether the run quantizes or fine-tunes the weights of its pruned run."""
        return bool(self.quantization or self.finetune)

    @property
    def seeded(self) -> bool:
        """Return whether the result depends on the seed, of which SLiM-LoRA reads text and fine-tuning its order."""
        return self.definition.seeded or self.quantization == "slim-lora" or self.finetune is not None

    def made_by(self, stage: str) -> str:
        """Return the name under which the cost of a stage is listed: quantization, fine-tuning or method."""
        return {"quantize": self.quantization, "finetune": self.finetune}.get(stage) or self.method

    @property
    def imported(self) -> str | None:
        """Name of an imported mask under `imports`, or None for other masks."""
        return self.variant.removeprefix(IMPORT) if self.variant and self.variant.startswith(IMPORT) else None

    @property
    def definition(self) -> Method:
        """Method of the run; for an imported mask, one that needs no statistics and updates no weights."""
        method = get_method(self.method)
        if self.imported:
            return replace(method, stage="import", statistics="none", updates_weights=False)
        return method


def nm_sparsity(pattern: str) -> float:
    """Return the fraction of zeros of an N:M pattern, which keeps N of M weights."""
    n, m = parse_nm(pattern)
    return 1 - n / m


class ModelInfo(Schema):
    """Description of a configured model for tables and figures.

    Attributes:
        name: Key under `models` in the configuration.
        title: Printed name.
        variant: Variant that the grid's method `patch` selects for this model.
        published: Id of the corresponding model in `published.json`.
        comparable: False if ``published`` is another model of the family.
        tile: The experiment's tile size, which is matched with the paper's tile size if models are not comparable.
    """

    name: Name
    title: str
    variant: Literal["joint", "tile"]
    published: str | None = None
    comparable: bool = True
    tile: Positive | None = None
