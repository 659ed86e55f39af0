"""Loading of one process' part of a linear layer, packed, from the tensors of a model's files.

An engine may merge layers with the same inputs, such as query, key and value, and divide a layer among processes. Both
keep whole tiles, so a weight is never unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference.packed import PackedWeight
from patch.inference.packed_config import PackedLayer, TensorSpec
from patch.inference.sharding import all_dense, block_of, check_block, joined
from patch.inference.weight_files import StoredTensor, check_stored
from patch.masks.tile import tile_grid
from patch.quantization.slim_lora import Adapter


class Piece(NamedTuple):
    """Packed weight of consecutive outputs, and the low-rank matrix that is added to it."""

    weight: PackedWeight
    adapter: Adapter | None = None


@dataclass
class _Member:
    """Linear layer of the files, of which a process keeps some outputs.

    Attributes:
        name: name of the layer.
        description: sizes of the packed layer; None for a dense layer.
        sizes: number of outputs that the process keeps: one, or several if the files hold an already merged layer.
        tensors: tensors added so far, by the name of the part.
        pieces: the process' part of the layer, once all tensors are added.
    """

    name: str
    description: PackedLayer | None
    sizes: Sequence[int]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    pieces: list[Piece] | None = None

    @property
    def parts(self) -> dict[str, torch.dtype | None]:
        """Dtypes of the expected tensors, None for the dtype of the model, by the name of the part."""
        if self.description is None:
            return {"weight": None}
        specs = self.description.tensors()
        return {part: getattr(torch, spec.dtype) if spec.dtype else None for part, spec in specs.items()}


class LayerLoader:
    """Collects the tensors of a layer, in any order, and packs one process' part of it.

    Args:
        members: descriptions of the merged layers, in order, by name; None for a dense one. At least one is packed.
        sizes: number of outputs of each merged layer in this process.
        inputs: number of inputs of the layer: in this process, and in all.
        rank: number of this process.
        world: number of processes, the tensor parallel size.
        dtype: dtype of the model.

    Raises:
        InputError: the layer does not have these sizes, or the processes would cut its tiles.
    """

    def __init__(
        self,
        members: Mapping[str, PackedLayer | None],
        sizes: Sequence[int],
        inputs: tuple[int, int],
        rank: int,
        world: int,
        dtype: torch.dtype,
    ) -> None:
        if len(members) not in (1, len(sizes)):
            raise InputError(f"{', '.join(members)}: {len(members)} layers cannot be merged into {len(sizes)}")
        each = [sizes] if len(members) == 1 else [[size] for size in sizes]
        self._members = [_Member(name, layer, own) for (name, layer), own in zip(members.items(), each, strict=True)]
        self._rank, self._world, self._dtype = rank, world, dtype
        self._total = inputs[1]
        start = 0 if inputs[0] == inputs[1] else rank * inputs[0]
        self._columns = range(start, start + inputs[0])
        self._tile = next(member.description.tile for member in self._members if member.description)
        for member in self._members:
            if member.description:
                self._check(member.name, member.description, member.sizes)

    @property
    def parts(self) -> dict[str, torch.dtype]:
        """Dtypes of all expected tensors, by the name of the part."""
        return {part: dtype or self._dtype for member in self._members for part, dtype in member.parts.items()}

    @property
    def missing(self) -> list[str]:
        """Names of the tensors that were not added."""
        pending = [member for member in self._members if member.pieces is None]
        return [f"{member.name}.{part}" for member in pending for part in member.parts if part not in member.tensors]

    def add(self, index: int, part: str, tensor: Tensor) -> list[Piece] | None:
        """Add a tensor of the files.

        Args:
            index: number of the merged layer.
            part: name of the part.
            tensor: the whole tensor.

        Returns:
            The process' part of the layer if all tensors are there, else None. Layers without an adapter whose weights
            have one form are one weight.

        Raises:
            InputError: the tensor does not fit the description, or the parts are inconsistent.
        """
        member = self._members[index]
        self._check_tensor(member, part, tensor)
        member.tensors[part] = tensor
        if member.tensors.keys() == member.parts.keys():
            try:
                member.pieces = self._pack(member)
            except InputError as error:
                raise InputError(f"{member.name}: {error}") from None
            member.tensors = {}
        if any(each.pieces is None for each in self._members):
            return None
        pieces = [piece for each in self._members for piece in each.pieces or ()]
        for each in self._members:
            each.pieces = None
        found: list[Piece] = []
        for adapted, group in groupby(pieces, key=lambda piece: piece.adapter is not None):
            same = list(group)
            found += same if adapted else [Piece(weight) for weight in joined([piece.weight for piece in same])]
        return found

    def _check(self, name: str, layer: PackedLayer, sizes: Sequence[int]) -> None:
        """Check a description against the sizes in this process."""
        if layer.sizes[1] != self._total:
            raise InputError(f"{name}: config.json describes {layer.sizes[1]} inputs; the model has {self._total}")
        for rows in self._rows(name, layer.sizes[0], sizes):
            try:
                check_block(layer.sizes, layer.tile, rows, self._columns, layer.group_size)
            except InputError as error:
                high, wide = tile_grid(layer.sizes, layer.tile)
                raise InputError(
                    f"{name}: with a tensor parallel size of {self._world}, {error}; choose a size that divides its "
                    f"{high} x {wide} tiles"
                ) from None

    def _rows(self, name: str, total: int, sizes: Sequence[int]) -> list[range]:
        """Return the outputs of a layer with ``total`` ones that this process keeps, in its files' order."""
        if len(sizes) == 1:
            # With fewer key-value heads than processes, several processes keep the same outputs.
            shards, rest = divmod(total, sizes[0])
            if not rest and shards and self._world % shards == 0:
                start = self._rank // (self._world // shards) * sizes[0]
                return [range(start, start + sizes[0])]
        elif sum(sizes) * self._world == total:
            starts = [sum(sizes[:i]) * self._world + self._rank * size for i, size in enumerate(sizes)]
            return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        kept = " + ".join(map(str, sizes))
        raise InputError(f"{name}: {total} outputs cannot be divided into {kept} for each of {self._world} processes")

    def _check_tensor(self, member: _Member, part: str, tensor: Tensor) -> None:
        if part not in member.parts:
            raise InputError(f"{member.name}.{part}: not a tensor of this layer; expected {', '.join(member.parts)}")
        name, shape = f"{member.name}.{part}", tuple(tensor.shape)
        # The number of outputs of a dense layer is not described.
        spec = member.description.tensors()[part] if member.description else TensorSpec((*shape[:1], self._total), None)
        stored = StoredTensor(str(tensor.dtype).removeprefix("torch."), shape, Path("the model's files"))
        check_stored({name: stored}, {name: spec}, stored.path)

    def _pack(self, member: _Member) -> list[Piece]:
        tensors = {part: t.to(self._dtype) if member.parts[part] is None else t for part, t in member.tensors.items()}
        layer, columns = member.description, slice(self._columns.start, self._columns.stop)
        if layer is None:
            weight = tensors["weight"]
            rows = self._rows(member.name, len(weight), member.sizes)
            return [Piece(all_dense(weight[each.start : each.stop, columns], self._tile)) for each in rows]
        left, right = tensors.pop("adapter_left", None), tensors.pop("adapter_right", None)
        whole = PackedWeight(layer.sizes, layer.tile, **tensors, group_size=layer.group_size)
        found = []
        for each in self._rows(member.name, layer.sizes[0], member.sizes):
            block = block_of(whole, each, self._columns)
            if left is None or right is None:
                found.append(Piece(block))
            else:
                factors = left[each.start : each.stop].clone(), right[:, columns].clone().contiguous()
                found.append(Piece(block, Adapter(*factors)))
        return found
