"""One run of a grid, what it is called, and how its parts are written into names."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from patch.masks.pattern import parse_nm
from patch.masks.tile_size import WHOLE_MATRIX
from patch.methods import Method, get_method

IMPORT = "import="


def format_sparsity(value: float) -> str:
    """The one way in which a sparsity is written into an id or a path."""
    return f"{value:.6g}"


def format_tile(tile: int) -> str:
    """The one way in which the side of a tile is written into an id or a label."""
    return "matrix" if tile == WHOLE_MATRIX else str(tile)


@dataclass(frozen=True, order=True)
class Cell:
    """One run: a model made sparse in one way.

    Attributes:
        model: name under `models`.
        method: name in `patch.methods`.
        pattern: `dense`, `N:M`, `unstructured` or `hybrid` (dense tiles among 2:4 tiles).
        sparsity: target share of zeros in the prunable layers.
        tile: side of a tile for `hybrid`, else None.
        seed: seed of calibration and learning; 0 where neither plays a part.
        quantization: `absmax` or `slim-lora` for weights that are quantised after pruning, else None.
        variant: what sets it apart from the plain run: `key=value` of a learning setting that an ablation varies, or
            `import=name` for a mask that was not made here; else None.
    """

    model: str
    method: str
    pattern: str
    sparsity: float
    tile: int | None
    seed: int
    quantization: str | None = None
    variant: str | None = None

    @classmethod
    def of(cls, written: Any) -> Cell:
        """The cell that a spec or a record describes, by fields of the same names."""
        return cls(**{field.name: getattr(written, field.name) for field in fields(cls)})

    @property
    def id(self) -> str:
        """Name within the model, safe in a path: `patch-joint_hybrid_0.45_t16_s0`."""
        return self._name(f"_s{self.seed}")

    @property
    def row(self) -> str:
        """Name of what all seeds have in common: `patch-joint_hybrid_0.45_t16`."""
        return self._name("")

    def _name(self, seed: str) -> str:
        tile = f"_t{format_tile(self.tile)}" if self.tile else ""
        pattern = self.pattern.replace(":", "of")
        quantized = f"_{self.quantization}" if self.quantization else ""
        variant = f"_{self.variant}" if self.variant else ""
        return f"{self.method}_{pattern}_{format_sparsity(self.sparsity)}{tile}{variant}{seed}{quantized}"

    @property
    def pruned(self) -> Cell:
        """The cell whose mask and weights this one has: itself before quantisation."""
        return replace(self, quantization=None, seed=self.seed if self.spec.seeded else 0)

    @property
    def imported(self) -> str | None:
        """Name under `imports` of a mask that was not made here."""
        return self.variant.removeprefix(IMPORT) if self.variant and self.variant.startswith(IMPORT) else None

    @property
    def spec(self) -> Method:
        """What the method can do and needs; an imported mask needs nothing and changes no weights."""
        method = get_method(self.method)
        if self.imported:
            return replace(method, stage="import", statistics="none", updates_weights=False)
        return method


def nm_sparsity(pattern: str) -> float:
    """Share of zeros of an N:M pattern (N of M weights are kept)."""
    n, m = parse_nm(pattern)
    return 1 - n / m
