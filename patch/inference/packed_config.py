"""Description of a model's packed layers: the `quantization_config` of its `config.json`.

The description fixes the name, shape and dtype of every tensor of a packed layer, so that these are compared with the
headers of the weight files before any weight is read.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from patch.errors import InputError
from patch.files.schema import Count, Name, Schema, check
from patch.inference.checked import CODES_PER_BYTE, SCALES, check_geometry, tile_counts
from patch.masks.header import Size
from patch.masks.tile import tile_grid
from patch.quantization.absmax import group_count

METHOD = "patch-hybrid"
FORMAT = 1


class TensorSpec(NamedTuple):
    """Shape of a stored tensor, and the name of its PyTorch dtype; None for the dtype of the model."""

    shape: tuple[int, ...]
    dtype: str | None


class PackedLayer(Schema):
    """Description of a packed linear layer.

    Attributes:
        shape: `[out, in]`.
        tile: side of a tile; a tile larger than the matrix in a direction ends with it.
        sparse_tiles: number of tiles that are 2:4; all others are dense.
        bits: 4 for a quantized layer, else None.
        group_size: columns of a quantized layer that share a scale.
        rank: rank of the low-rank adapter of a quantized layer, or None.
    """

    shape: Annotated[list[Size], Field(min_length=2, max_length=2)]
    tile: Size
    sparse_tiles: Count
    bits: Literal[4] | None = None
    group_size: Size | None = None
    rank: Size | None = None

    @model_validator(mode="after")
    def _fits(self) -> PackedLayer:
        check_geometry(self.sizes, self.tile)
        if (self.bits is None) != (self.group_size is None) or (self.bits is None and self.rank is not None):
            given = {name: getattr(self, name) for name in ("bits", "group_size", "rank")}
            raise ValueError(f"{given}; a quantized layer has bits and group_size, and alone may have a rank")
        if self.sparse_tiles > self.tiles:
            raise ValueError(f"{self.sparse_tiles} sparse tiles; tile {self.tile} cuts {self.shape} into {self.tiles}")
        return self

    @property
    def sizes(self) -> tuple[int, int]:
        """`(out, in)`."""
        return self.shape[0], self.shape[1]

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return math.prod(tile_grid(self.sizes, self.tile))

    def tensors(self) -> dict[str, TensorSpec]:
        """Return the shape and dtype of each tensor of the layer but the bias, by its name."""
        weights, bitmap_bytes = tile_counts(self.sizes, self.tile)
        values = weights * (self.tiles - self.sparse_tiles) + weights // 2 * self.sparse_tiles
        found = {
            "values": TensorSpec((values,), None),
            "bits": TensorSpec((bitmap_bytes * self.sparse_tiles,), "uint8"),
            "dense": TensorSpec(tile_grid(self.sizes, self.tile), "bool"),
        }
        out, columns = self.sizes
        if self.group_size is not None:
            found["values"] = TensorSpec((values // CODES_PER_BYTE,), "uint8")
            found[SCALES] = TensorSpec((out, group_count(columns, self.group_size)), "float32")
        if self.rank is not None:
            found["adapter_left"] = TensorSpec((out, self.rank), None)
            found["adapter_right"] = TensorSpec((self.rank, columns), None)
        return found


class PackedConfig(Schema):
    """Description of a packed model.

    Attributes:
        quant_method: `patch-hybrid`, by which transformers and vLLM find the code that reads the model.
        format: version of this description and of the tensors.
        layers: module path of each packed layer -> its description; all other layers are ordinary ones.
    """

    quant_method: Literal["patch-hybrid"] = METHOD
    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    layers: Annotated[dict[Name, PackedLayer], Field(min_length=1)]

    def tensors(self) -> dict[str, TensorSpec]:
        """Return the shape and dtype of each part of each packed layer, by the tensor's name in the weight files."""
        return {f"{name}.{part}": spec for name, layer in self.layers.items() for part, spec in layer.tensors().items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of `config.json`."""
        return self.model_dump(exclude_none=True)


def parse_config(value: Any, where: str = "config.json: quantization_config") -> PackedConfig:
    """Validate a `quantization_config`.

    Args:
        value: the value of the JSON file.
        where: its name in messages.

    Raises:
        InputError: the method is another one, the format is newer, or a layer is described wrongly.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}: {value!r:.80}; expected a JSON object")
    method, version = value.get("quant_method"), value.get("format")
    if method != METHOD:
        raise InputError(f"{where}: the quant_method is {method!r:.80}; this software reads {METHOD!r}")
    if type(version) is int and version > FORMAT:
        raise InputError(f"{where}: format {version!r:.20} is newer than {FORMAT}, the newest that this version reads")
    return check(PackedConfig, value, where)
