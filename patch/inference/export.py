"""Export of a sparse model as a folder of transformers, in one of three forms.

`packed` stores 2:4 tiles without their zeros, `dense` stores the zeros in ordinary weights, with the mask in the format
in which PATCH's masks are published, and `compressed-tensors` stores dense 4-bit weights for other software.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from patch.errors import InputError
from patch.files.io import own_directory
from patch.inference.convert import convert
from patch.inference.files import save, write_model
from patch.inference.weight_files import read_headers, weight_files
from patch.masks.packed import MaskSet, apply_masks
from patch.masks.published_masks import read_published, write_published
from patch.models.loading import load_model, prunable_linears, weight_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from patch.quantization.model import QuantizedLayer

MASK, CARD = "mask.npz", "README.md"


class Sizes(NamedTuple):
    """Bytes of weights, in the dense model and in the exported one.

    Attributes:
        dense: all weights of the dense model, in its dtype.
        stored: all weights of the exported model.
        dense_linear: those of the linear layers in the decoder blocks, of the dense model.
        stored_linear: those of the same layers, of the exported model.
    """

    dense: int
    stored: int
    dense_linear: int
    stored_linear: int


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    masks: MaskSet | None,
    out: Path | str,
    form: str,
    layers: Mapping[str, QuantizedLayer] | None = None,
    card: Callable[[Sizes], str] | None = None,
    meta: Mapping[str, Any] = {},
) -> None:
    """Save a sparse or quantized model atomically, after the saved model was loaded again and compared.

    Args:
        model: the dense model, which is changed in place.
        tokenizer: tokenizer to save beside the model, or None.
        masks: the masks of ``model``; None for a quantized model that is not pruned.
        out: a folder that does not exist yet, or is empty.
        form: `packed`, `dense` or `compressed-tensors`, which only ``layers`` have, and which is not loaded again.
        layers: the quantized layers of the masked model, or None.
        card: function of the sizes that returns the model card, or None.
        meta: further entries of the description in `mask.npz`.

    Raises:
        InputError: ``out`` is in use, the model does not have this form, the masks are those of another model, or the
            saved model differs from ``model``; then nothing is left at ``out``.
    """
    out = Path(out)
    _check_form(out, masks, form, layers)
    if masks is not None:
        masks.verify()
    names = set(prunable_linears(model))
    dense = {name: tensor.nbytes for name, tensor in model.named_parameters()}
    with own_directory(out, "export") as folder:
        try:
            _save(folder, out, model, masks, form, layers, meta)
        except InputError as error:
            raise InputError(str(error).replace(str(folder), str(out))) from None
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if card is not None:
            stored = _stored_bytes(folder)
            sizes = Sizes(*(sum(found.values()) for found in (dense, stored, _of(dense, names), _of(stored, names))))
            (folder / CARD).write_text(card(sizes), encoding="utf-8")
        try:
            _verify(folder, model, masks, form)
        except InputError as error:
            raise InputError(f"export to {out}: the saved model is wrong and is removed: {error}") from None


def _check_form(out: Path, masks: MaskSet | None, form: str, layers: Mapping[str, QuantizedLayer] | None) -> None:
    """Refuse a form that the model does not have.

    Raises:
        InputError: names the forms that it has.
    """
    if masks is None and layers is None:
        raise InputError(f"export to {out}: no masks; a dense model has nothing to export")
    if form == "packed" and masks is not None and masks.pattern not in ("2:4", "hybrid"):
        other = "compressed-tensors" if layers else "dense"
        raise InputError(f"export to {out}: masks of {masks.pattern} have no packed form; use the form {other}")
    if form == "dense" and layers:
        raise InputError(f"export to {out}: quantized weights have no dense form; use packed or compressed-tensors")
    if form == "compressed-tensors" and not layers:
        raise InputError(f"export to {out}: weights that are not quantized have the forms packed and dense")


def _save(
    folder: Path,
    out: Path,
    model: PreTrainedModel,
    masks: MaskSet | None,
    form: str,
    layers: Mapping[str, QuantizedLayer] | None,
    meta: Mapping[str, Any],
) -> None:
    if form == "packed":
        save(convert(model, masks, quantized=layers), folder)
    elif form == "compressed-tensors":
        from patch.inference.pack_quantized import save_pack_quantized

        save_pack_quantized(model, layers, folder)
    else:
        apply_masks(model, masks)
        write_model(model, folder, f"export to {out}")
        write_published(folder / MASK, model, masks, meta)


def _stored_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of each tensor in the weight files of a folder, by their headers."""
    stored = read_headers(weight_files(folder))
    return {name: math.prod(found.shape) * getattr(torch, found.dtype).itemsize for name, found in stored.items()}


def _of(tensors: Mapping[str, int], layers: Collection[str]) -> dict[str, int]:
    """Return the tensors of some layers."""
    return {name: size for name, size in tensors.items() if name.rpartition(".")[0] in layers}


def _verify(folder: Path, model: PreTrainedModel, masks: MaskSet | None, form: str) -> None:
    """Compare a saved folder with the model that was saved.

    Raises:
        InputError: names the first weight that differs.
    """
    if form == "compressed-tensors":  # only other software reads it
        return
    loaded = load_model(folder, str(model.dtype).removeprefix("torch."))
    if form == "dense":
        _verify_masks(folder, loaded, masks)
    found, expected = loaded.state_dict(), model.state_dict()
    if found.keys() != expected.keys():
        raise InputError(f"{min(found.keys() ^ expected.keys())} is in only one of the saved model and the model")
    for name, weight in expected.items():
        same_kind = (found[name].dtype, found[name].shape) == (weight.dtype, weight.shape)
        if not same_kind or not _bytes(found[name]).equal(_bytes(weight)):
            raise InputError(f"{name} has other values, shape or type than the model's")


def _verify_masks(folder: Path, loaded: PreTrainedModel, masks: MaskSet) -> None:
    """Compare the saved mask file and the zeros of the saved model with the masks.

    Raises:
        InputError: names the first layer that differs.
    """
    saved = read_published(folder / MASK, loaded, masks.pattern, masks.tile).masks
    for name, linear in prunable_linears(loaded).items():
        if not saved[name].equal(masks.masks[name].cpu()):
            raise InputError(f"{MASK} has another mask of {name}")
        if nonzero := int(weight_matrix(linear)[~saved[name]].count_nonzero()):
            raise InputError(f"{name}.weight: {nonzero} masked weights are not zero")


def _bytes(tensor: Tensor) -> Tensor:
    """View a tensor as bytes, by which 0 differs from -0 and a NaN equals itself."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
