"""Header of a mask file: its schema, read without PyTorch while the workflow is parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from patch.errors import InputError
from patch.files.schema import Name, Schema, check
from patch.files.tensors import load_header
from patch.masks.pattern import group_of

FORMAT = "patch-mask-2"
Size = Annotated[int, Field(ge=1, lt=2**31)]
# Layer name -> `[out, in]`.
Shapes = Annotated[dict[Name, Annotated[list[Size], Field(min_length=2, max_length=2)]], Field(min_length=1)]


class MaskHeader(Schema):
    """Header of a mask file.

    Attributes:
        pattern: `N:M`, `unstructured` or `hybrid`.
        tile: side of a tile for `hybrid`, else None.
        shapes: layer name -> `[out, in]`.
        achieved_sparsity: fraction of zeros over all layers.
        provenance: how the masks were made: settings, their digest, cost.
    """

    pattern: str
    tile: Size | None
    shapes: Shapes
    achieved_sparsity: float = Field(ge=0, le=1)
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _fits(self) -> MaskHeader:
        """Check that groups and tiles divide every layer."""
        if (self.tile is None) == (self.pattern == "hybrid"):
            raise ValueError(f"`tile` is {self.tile} for the pattern {self.pattern!r:.80}; hybrid alone has tiles")
        _, group = group_of(self.pattern)
        for name, (rows, columns) in self.shapes.items():
            height, width = min(rows, self.tile or 1), min(columns, self.tile or group)
            if rows % height or columns % width or width % group:
                raise ValueError(f"a pattern {self.pattern}, tile {self.tile}, does not fit {name} of {rows}x{columns}")
        return self


def check_header(header: dict[str, Any], path: Path | str) -> MaskHeader:
    """Check the header of a mask file.

    Raises:
        InputError: names the first fault.
    """
    return check(MaskHeader, header, f"mask {path}: not the header of a mask")


def read_header(path: Path | str) -> dict[str, Any] | None:
    """Read the provenance of the masks in a file; None if there is no such file or its header is damaged."""
    try:
        return check_header(load_header(path, FORMAT, "mask"), path).provenance
    except InputError:
        return None
