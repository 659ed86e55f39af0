"""Masks on disk: one bit a weight and one a tile, checked when they are written and when they are read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patch.errors import InputError
from patch.io import atomic_file
from patch.masks.nm import NM, obeys
from patch.masks.tile import expand_tiles, tile_grid
from patch.models import prunable_linears, weight_matrix

FORMAT = "patch-mask-1"


class PackedMasks(Mapping[str, Tensor]):
    """Layer name -> `[out, in]` bool, kept as one bit a weight: a model's masks are large while they are made."""

    def __init__(self) -> None:
        self._bits: dict[str, tuple[Tensor, torch.Size]] = {}

    def __setitem__(self, name: str, mask: Tensor) -> None:
        self._bits[name] = (_pack(mask), mask.shape)

    def __getitem__(self, name: str) -> Tensor:
        bits, shape = self._bits[name]
        return _unpack(bits, list(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)


@dataclass
class MaskSet:
    """The masks of a model.

    Attributes:
        masks: layer name -> `[out, in]` bool, True = keep.
        pattern: `N:M`, `unstructured` or `hybrid` (2:4 outside the dense tiles).
        tiles: for `hybrid`, layer name -> `[tiles along out, tiles along in]` bool, True = dense.
        tile: side of a tile, or None.
        header: what else is known: model, method, seed, digest of the settings, cost.
    """

    masks: Mapping[str, Tensor]
    pattern: str
    tiles: dict[str, Tensor] = field(default_factory=dict)
    tile: int | None = None
    header: dict[str, Any] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Share of zeros over all layers."""
        counts = [(int(mask.sum()), mask.numel()) for mask in self.masks.values()]
        return 1 - sum(kept for kept, _ in counts) / sum(size for _, size in counts)

    def density(self) -> dict[str, float]:
        """Kept share by layer."""
        return {name: int(mask.sum()) / mask.numel() for name, mask in self.masks.items()}

    def verify(self) -> None:
        """Check that every group that must be N:M is.

        Raises:
            InputError: names the layer and the first group that breaks the pattern.
        """
        if self.pattern == "unstructured":
            return
        for name, mask in self.masks.items():
            pattern = NM(2, 4) if self.pattern == "hybrid" else NM(*map(int, self.pattern.split(":")))
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


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _unpack(bits: Tensor, shape: list[int]) -> Tensor:
    flat = np.unpackbits(bits.numpy(), count=math.prod(shape))
    return torch.from_numpy(flat.astype(bool)).reshape(shape)


def save_masks(path: Path | str, masks: MaskSet) -> None:
    """Verify and write a mask file, atomically.

    Raises:
        InputError: a mask breaks its pattern.
    """
    from safetensors.torch import save_file

    masks.verify()
    tensors = {f"{name}.mask": _pack(mask) for name, mask in masks.masks.items()}
    tensors |= {f"{name}.tiles": _pack(tiles) for name, tiles in masks.tiles.items()}
    description = {
        **masks.header,
        "format": FORMAT,
        "pattern": masks.pattern,
        "tile": masks.tile,
        "shapes": {name: list(mask.shape) for name, mask in masks.masks.items()},
        "achieved_sparsity": masks.sparsity,
    }
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"patch": json.dumps(description)})


def load_masks(path: Path | str) -> MaskSet:
    """Read and verify a mask file.

    Raises:
        InputError: the file is missing, truncated, foreign, or its masks break their pattern.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            description = _description((file.metadata() or {}).get("patch", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise InputError(f"mask {path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"mask {path}: truncated or not a safetensors file ({error})") from None
    if description.get("format") != FORMAT:
        raise InputError(
            f"mask {path}: format is {description.get('format')!r}, expected {FORMAT!r}; "
            "it was not written by this software"
        )
    try:
        masks = _assemble(path, description, tensors)
        masks.verify()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise InputError(
            f"mask {path}: its header is damaged ({type(error).__name__}: {error}); make it again"
        ) from None
    return masks


def _description(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {}


def _assemble(path: Path | str, description: dict[str, Any], tensors: dict[str, Tensor]) -> MaskSet:
    pattern, tile, shapes = description.pop("pattern"), description.pop("tile"), description.pop("shapes")
    masks: dict[str, Tensor] = {}
    tiles: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        wanted = {"mask": shape} | ({"tiles": list(tile_grid(shape, tile))} if pattern == "hybrid" else {})
        for part, size in wanted.items():
            bits = tensors.get(f"{name}.{part}")
            if bits is None or bits.dtype != torch.uint8 or bits.numel() != -(-math.prod(size) // 8):
                raise InputError(f"mask of {name}: {name}.{part} is missing or has the wrong size for {size}")
            (masks if part == "mask" else tiles)[name] = _unpack(bits, size)
    return MaskSet(masks, pattern, tiles, tile, description)


def check_masks(model: torch.nn.Module, masks: MaskSet) -> dict[str, torch.nn.Module]:
    """Check that ``masks`` are of ``model``; returns its prunable layers.

    Raises:
        InputError: a layer or a shape does not match.
    """
    linears = prunable_linears(model)
    if set(linears) != set(masks.masks):
        odd = sorted(set(linears) ^ set(masks.masks))[0]
        raise InputError(
            f"the masks are of another model: layer {odd} is only in {'the model' if odd in linears else 'the masks'}"
        )
    for name, linear in linears.items():
        mask, shape = masks.masks[name], weight_matrix(linear).shape
        if mask.shape != shape:
            raise InputError(f"the masks are of another model: {name} is {list(shape)}, its mask {list(mask.shape)}")
    return linears


@torch.no_grad()
def apply_masks(model: torch.nn.Module, masks: MaskSet) -> None:
    """Zero the masked weights of ``model`` in place.

    Raises:
        InputError: the masks are of another model; nothing is changed.
    """
    for name, linear in check_masks(model, masks).items():
        weight_matrix(linear).masked_fill_(~masks.masks[name].to(linear.weight.device), 0)
