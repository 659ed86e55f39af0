"""Checkpoint file of `prepare_pruned_model`: two sets of masks, and digests of what they depend on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from patch.errors import InputError
from patch.files.schema import Schema, check
from patch.files.tensors import load_tensors, save_tensors
from patch.masks.header import Shapes
from patch.masks.packed import MaskSet, check_masks, pack_bits, take_mask

FORMAT = "patch-priors-2"
_SETS = ("compressed", "ranking")


class _Patterns(Schema):
    compressed: str
    ranking: str


class _Header(Schema):
    settings: dict[str, Any]
    patterns: _Patterns
    shapes: Shapes


@dataclass
class InitialMasks:
    """Mask initialization of learning, attached to a compressed model as its attribute `patch_priors`.

    Attributes:
        compressed: masks of the one-shot method: the initialization of the patterns, or the fixed mask in sparse tiles.
        ranking: unstructured masks at the target sparsity; a tile that keeps more weights is likelier to stay dense.
        settings: all settings that both depend on, by name; JSON values.
    """

    compressed: MaskSet
    ranking: MaskSet
    settings: dict[str, Any]


def save_initial_masks(path: Path, initial: InitialMasks) -> None:
    """Verify the masks and write them atomically to ``path``, with any file extension.

    Raises:
        InputError: a mask breaks its pattern, or the path cannot be written.
    """
    sets = {name: getattr(initial, name) for name in _SETS}
    for masks in sets.values():
        masks.verify()
    header = {
        "settings": initial.settings,
        "patterns": {name: masks.pattern for name, masks in sets.items()},
        "shapes": {layer: list(mask.shape) for layer, mask in initial.compressed.masks.items()},
    }
    tensors = {
        f"{name}.{layer}": pack_bits(mask) for name, masks in sets.items() for layer, mask in masks.masks.items()
    }
    try:
        save_tensors(path, FORMAT, header, tensors)
    except OSError as error:
        raise InputError(f"`checkpoint_name` is {str(path)!r}, which cannot be written: {error.strerror}") from None


def load_initial_masks(path: Path, wanted: dict[str, Any], model: nn.Module) -> InitialMasks:
    """Read and verify a checkpoint, and compare it with the current settings and model.

    Args:
        path: a file of ``save_initial_masks``.
        wanted: required value of `InitialMasks.settings`.
        model: model that the masks must fit.

    Raises:
        InputError: the file is damaged or of another format, or was made with other settings; the message lists them.
    """
    remedy = "remove it or give another checkpoint_name"
    try:
        values, tensors = load_tensors(path, FORMAT, "checkpoint")
        header = check(_Header, values, f"checkpoint {path}: not its header")
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    compare_settings(f"checkpoint {path} was made", header.settings, wanted, "give another checkpoint_name")
    try:
        initial = InitialMasks(**{name: _masks(name, header, tensors) for name in _SETS}, settings=wanted)
        if tensors:
            raise InputError(f"{min(tensors)!r:.200} belongs to no layer of its header")
        for masks in (initial.compressed, initial.ranking):
            masks.verify()
            check_masks(model, masks)
    except InputError as error:
        raise InputError(f"checkpoint {path}: {error}; {remedy}") from None
    return initial


def compare_settings(what: str, made: dict[str, Any], wanted: dict[str, Any], remedy: str) -> None:
    """Refuse settings that differ from the required ones.

    Raises:
        InputError: settings differ; the message names each with both values.
    """
    differing = [name for name in {**wanted, **made} if made.get(name) != wanted.get(name)]
    if differing:
        lines = "; ".join(f"`{name}` was {made.get(name)!r} and is {wanted.get(name)!r} now" for name in differing)
        raise InputError(f"{what} with other settings: {lines}; use the same, or {remedy}")


def _masks(name: str, header: _Header, tensors: dict[str, Tensor]) -> MaskSet:
    masks = {layer: take_mask(tensors, f"{name}.{layer}", shape) for layer, shape in header.shapes.items()}
    return MaskSet(masks, getattr(header.patterns, name))


def digest_of(value: Any) -> str:
    """Return the digest of a JSON value."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Return the digest of all parameters with their names, shapes and dtypes, independent of the device."""
    digest = blake2b(digest_size=12)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the digest of a tokenizer's vocabulary and special tokens."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest_of([sorted(tokenizer.get_vocab().items()), special])
