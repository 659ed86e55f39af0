"""The file of `prepare_pruned_model`: two sets of masks and all that they depend on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.io import atomic_file
from patch.masks.packed import MaskSet, check_masks

FORMAT = "patch-priors-1"
_SETS = ("compressed", "ranking")


@dataclass
class Priors:
    """Where learning starts; attached to a compressed model as its attribute `patch_priors`.

    Attributes:
        compressed: masks of the one-shot method: what the patterns start from, or are in sparse tiles.
        ranking: unstructured masks at the target sparsity: a tile that keeps more is likelier to stay dense.
        settings: everything that both depend on, by name; JSON.
    """

    compressed: MaskSet
    ranking: MaskSet
    settings: dict[str, Any]


def save_priors(path: Path, priors: Priors) -> None:
    """Verify and write, atomically, under the name that is given, whatever its ending.

    Raises:
        InputError: a mask breaks its pattern, or nothing can be written there.
    """
    from safetensors.torch import save_file

    sets = {name: getattr(priors, name) for name in _SETS}
    for masks in sets.values():
        masks.verify()
    description = {
        "format": FORMAT,
        "settings": priors.settings,
        "patterns": {name: masks.pattern for name, masks in sets.items()},
        "shapes": {layer: list(mask.shape) for layer, mask in priors.compressed.masks.items()},
    }
    tensors = {
        f"{name}.{layer}": torch.from_numpy(np.packbits(mask.cpu().numpy()))
        for name, masks in sets.items()
        for layer, mask in masks.masks.items()
    }
    try:
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={"patch": json.dumps(description)})
    except OSError as error:
        raise InputError(f"`checkpoint_name` is {str(path)!r}, which cannot be written: {error.strerror}") from None


def load_priors(path: Path, wanted: dict[str, Any], model: nn.Module) -> Priors:
    """Read, verify, and compare with what is wanted now.

    Args:
        path: a file of ``save_priors``.
        wanted: what `Priors.settings` must be.
        model: whose masks they must be.

    Raises:
        InputError: the file is damaged or foreign, or was made with other settings; says which differ and how.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {}).get("patch", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"checkpoint {path}: truncated, or not a file of prepare_pruned_model, which holds masks as safetensors "
            f"({error}); remove it or give another checkpoint_name"
        ) from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(
            f"checkpoint {path}: not a file of prepare_pruned_model; remove it or give another checkpoint_name"
        )
    made = description.get("settings") or {}
    compare_settings(f"checkpoint {path} was made", made, wanted, "give another checkpoint_name")
    try:
        priors = Priors(**{name: _masks(name, description, tensors) for name in _SETS}, settings=wanted)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint {path}: damaged ({type(error).__name__}: {error}); remove it") from None
    for masks in (priors.compressed, priors.ranking):
        masks.verify()
        check_masks(model, masks)
    return priors


def compare_settings(what: str, made: dict[str, Any], wanted: dict[str, Any], remedy: str) -> None:
    """Refuse settings that are not those that are wanted.

    Raises:
        InputError: names every one that differs, with both values.
    """
    differing = [name for name in {**wanted, **made} if made.get(name) != wanted.get(name)]
    if differing:
        lines = "; ".join(f"`{name}` was {made.get(name)!r} and is {wanted.get(name)!r} now" for name in differing)
        raise InputError(f"{what} with other settings: {lines}; use the same, or {remedy}")


def _masks(name: str, description: dict[str, Any], tensors: dict[str, Tensor]) -> MaskSet:
    masks = {}
    for layer, shape in description["shapes"].items():
        flat = np.unpackbits(tensors[f"{name}.{layer}"].numpy(), count=math.prod(shape))
        masks[layer] = torch.from_numpy(flat.astype(bool)).reshape(shape)
    return MaskSet(masks, description["patterns"][name])
