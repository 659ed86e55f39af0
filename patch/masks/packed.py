"""Mask files: one bit a weight and one a tile, verified when they are written and when they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patch.errors import InputError
from patch.files.tensors import load_tensors, save_tensors
from patch.masks.header import FORMAT, check_header
from patch.masks.nm import NM, obeys
from patch.masks.pattern import group_of
from patch.masks.tile import expand_tiles, tile_grid
from patch.models.loading import prunable_linears, weight_matrix


class PackedMasks(Mapping[str, Tensor]):
    """Mapping from layer name to `[out, in]` bool, stored as one bit a weight to save memory while masks are made."""

    def __init__(self) -> None:
        self._bits: dict[str, tuple[Tensor, torch.Size]] = {}

    def __setitem__(self, name: str, mask: Tensor) -> None:
        self._bits[name] = (pack_bits(mask), mask.shape)

    def __getitem__(self, name: str) -> Tensor:
        bits, shape = self._bits[name]
        return _unpack(bits, list(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def state_dict(self) -> dict[str, Any]:
        """Return the bits and the shape of each mask."""
        return {name: {"bits": bits, "shape": list(shape)} for name, (bits, shape) in self._bits.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the masks by those of a state of `state_dict`."""
        self._bits = {name: (part["bits"], torch.Size(part["shape"])) for name, part in state.items()}


@dataclass
class MaskSet:
    """The masks of a model.

    Attributes:
        masks: layer name -> `[out, in]` bool, True = keep.
        pattern: `N:M`, `unstructured` or `hybrid` (2:4 outside the dense tiles).
        tiles: for `hybrid`, layer name -> `[tiles along out, tiles along in]` bool, True = dense.
        tile: side of a tile, or None.
        header: provenance of the masks: model, method, seed, digest of the settings, cost.
    """

    masks: Mapping[str, Tensor]
    pattern: str
    tiles: dict[str, Tensor] = field(default_factory=dict)
    tile: int | None = None
    header: dict[str, Any] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all layers."""
        counts = [(int(mask.sum()), mask.numel()) for mask in self.masks.values()]
        return 1 - sum(kept for kept, _ in counts) / sum(size for _, size in counts)

    def verify(self) -> None:
        """Check that every group that must be N:M is.

        Raises:
            InputError: names the layer and the first group that breaks the pattern.
        """
        if self.pattern == "unstructured":
            return
        pattern = NM(*group_of(self.pattern))
        for name, mask in self.masks.items():
            good = obeys(mask, pattern)
            if self.pattern == "hybrid":
                dense = expand_tiles(self.tiles[name], mask.shape)
                good |= dense[:, :: pattern.m]
                if not mask[dense].all():
                    raise InputError(f"mask of {name}: a tile that is marked dense has zeros")
            if not good.all():
                row, group = (~good).nonzero()[0].tolist()
                raise InputError(
                    f"mask of {name}: row {row}, weights {pattern.m * group} to "
                    f"{pattern.m * (group + 1) - 1} break {pattern}"
                )


def pack_bits(mask: Tensor) -> Tensor:
    """Pack bool values into bytes, the first into the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _unpack(bits: Tensor, shape: list[int]) -> Tensor:
    flat = np.unpackbits(bits.numpy(), count=math.prod(shape))
    return torch.from_numpy(flat.astype(bool)).reshape(shape)


def take_mask(tensors: dict[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    """Remove packed bits from ``tensors`` and unpack them to ``shape``.

    Raises:
        InputError: they are missing, have another size or type, or the bits after the last weight are not zero.
    """
    bits, size = tensors.pop(name, None), math.prod(shape)
    if bits is None or bits.dtype != torch.uint8 or bits.shape != (-(-size // 8),):
        raise InputError(f"{name} is missing or has the wrong size for {list(shape)}")
    if int(bits[-1]) & ((1 << -size % 8) - 1):
        raise InputError(f"{name} has bits after its {size} weights")
    return _unpack(bits, list(shape))


def save_masks(path: Path | str, masks: MaskSet) -> None:
    """Verify and write a mask file, atomically.

    Raises:
        InputError: a mask breaks its pattern.
    """
    masks.verify()
    header = {
        "pattern": masks.pattern,
        "tile": masks.tile,
        "shapes": {name: list(mask.shape) for name, mask in masks.masks.items()},
        "achieved_sparsity": masks.sparsity,
        "provenance": masks.header,
    }
    check_header(header, path)
    tensors = {f"{name}.mask": pack_bits(mask) for name, mask in masks.masks.items()}
    tensors |= {f"{name}.tiles": pack_bits(tiles) for name, tiles in masks.tiles.items()}
    save_tensors(path, FORMAT, header, tensors)


def load_masks(path: Path | str) -> MaskSet:
    """Read and verify a mask file.

    Raises:
        InputError: the file is missing, damaged or foreign, or its masks do not match its header.
    """
    values, tensors = load_tensors(path, FORMAT, "mask")
    header = check_header(values, path)
    try:
        masks = {name: take_mask(tensors, f"{name}.mask", shape) for name, shape in header.shapes.items()}
        tiles = {}
        if header.tile is not None:
            grids = {name: tile_grid(tuple(shape), header.tile) for name, shape in header.shapes.items()}
            tiles = {name: take_mask(tensors, f"{name}.tiles", grid) for name, grid in grids.items()}
        if tensors:
            raise InputError(f"{min(tensors)!r:.200} belongs to no layer of its header")
        found = MaskSet(masks, header.pattern, tiles, header.tile, header.provenance)
        found.verify()
        if not math.isclose(found.sparsity, header.achieved_sparsity, abs_tol=1e-9):
            raise InputError(f"sparsity {found.sparsity:.6f}, expected {header.achieved_sparsity:.6f}")
    except InputError as error:
        raise InputError(f"mask {path}: {error}; make it again") from None
    return found


def check_masks(model: torch.nn.Module, masks: MaskSet) -> dict[str, torch.nn.Module]:
    """Check that ``masks`` are of ``model``; return its prunable layers.

    Raises:
        InputError: a layer or a shape does not match.
    """
    return check_layers(model, {name: mask.shape for name, mask in masks.masks.items()}, "the masks", "mask")


def check_layers(
    model: torch.nn.Module, shapes: Mapping[str, Sequence[int]], what: str, part: str
) -> dict[str, torch.nn.Module]:
    """Check that a file's layers are the prunable layers of ``model``; return these.

    Args:
        model: the model.
        shapes: layer name -> `[out, in]` of what the file has for it.
        what: name of the contents in messages, such as `the masks`.
        part: name of one layer's part of them, such as `mask`.

    Raises:
        InputError: a layer or a shape does not match.
    """
    linears = prunable_linears(model)
    if odd := sorted(set(linears) ^ set(shapes)):
        where = "the model" if odd[0] in linears else what
        raise InputError(f"{what} are of another model: layer {odd[0]} is only in {where}")
    for name, linear in linears.items():
        shape, found = list(weight_matrix(linear).shape), list(shapes[name])
        if found != shape:
            raise InputError(f"{what} are of another model: {name} is {shape}, its {part} {found}")
    return linears


def check_zeros(model: torch.nn.Module, masks: MaskSet) -> None:
    """Check that all weights of ``model`` that ``masks`` remove are zero.

    Raises:
        InputError: a layer has others; or the masks are of another model.
    """
    for name, linear in check_masks(model, masks).items():
        removed = ~masks.masks[name].to(linear.weight.device)
        if wrong := int(weight_matrix(linear)[removed].count_nonzero()):
            raise InputError(f"{name}: {wrong} of {int(removed.sum())} weights that the mask removes are not zero")


@torch.no_grad()
def apply_masks(model: torch.nn.Module, masks: MaskSet) -> None:
    """Zero the masked weights of ``model`` in place.

    Raises:
        InputError: the masks are of another model; nothing is changed.
    """
    for name, linear in check_masks(model, masks).items():
        weight_matrix(linear).masked_fill_(~masks.masks[name].to(linear.weight.device), 0)
