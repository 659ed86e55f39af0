"""Export of a sparse model as a folder that transformers alone can load: `python -m patch export --help`.

The folder holds the masked weights, the tokenizer, and the masks in the format in which PATCH's are published.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patch.errors import InputError, print_result
from patch.files.io import own_directory
from patch.masks.packed import MaskSet, apply_masks, load_masks
from patch.masks.published_masks import read_published, write_published
from patch.models.loading import load_config, load_model, load_tokenizer, prunable_linears, weight_matrix
from patch.pruning.weights import load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MASK = "mask.npz"
DTYPES = ("float32", "bfloat16", "float16")


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    masks: MaskSet | None,
    out: Path | str,
    meta: Mapping[str, Any] = {},
) -> None:
    """Mask ``model`` in place and save it atomically, after the saved model was loaded again and compared.

    Args:
        model: the dense model.
        tokenizer: tokenizer to save beside the model, or None.
        masks: the masks of ``model``.
        out: a folder that does not exist yet, or is empty.
        meta: further entries of the description in `mask.npz`.

    Raises:
        InputError: ``out`` is in use, there are no masks or those of another model, or the saved model differs from
            ``model``; then nothing is left at ``out``.
    """
    out = Path(out)
    if masks is None:
        raise InputError(f"export to {out}: no masks; a dense model has nothing to export")
    masks.verify()
    with own_directory(out, "export") as folder:
        apply_masks(model, masks)
        try:
            model.save_pretrained(folder)
        except ValueError as error:  # transformers refuses to save a generation configuration that contradicts itself
            raise InputError(f"export to {out}: the model cannot be saved: {' '.join(str(error).split())}") from None
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_published(folder / MASK, model, masks, meta)
        try:
            _verify(folder, model, masks)
        except InputError as error:
            raise InputError(f"export to {out}: the saved model is wrong and is removed: {error}") from None


def _verify(folder: Path, model: PreTrainedModel, masks: MaskSet) -> None:
    """Compare a saved folder with the masked model.

    Raises:
        InputError: names the first weight that differs.
    """
    saved = read_published(folder / MASK, model, masks.pattern, masks.tile).masks
    for name, mask in masks.masks.items():
        if not saved[name].equal(mask.cpu()):
            raise InputError(f"{MASK} has another mask of {name}")
    loaded = load_model(folder, str(model.dtype).removeprefix("torch."))
    for name, linear in prunable_linears(loaded).items():
        if nonzero := int(weight_matrix(linear)[~saved[name]].count_nonzero()):
            raise InputError(f"{name}.weight: {nonzero} masked weights are not zero")
    found, expected = loaded.state_dict(), model.state_dict()
    if found.keys() != expected.keys():
        raise InputError(f"{min(found.keys() ^ expected.keys())} is in only one of the saved model and the model")
    for name, weight in expected.items():
        same_kind = (found[name].dtype, found[name].shape) == (weight.dtype, weight.shape)
        if not same_kind or not _bytes(found[name]).equal(_bytes(weight)):
            raise InputError(f"{name} has other values, shape or type than the model's")


def _bytes(tensor: Tensor) -> Tensor:
    """View a tensor as bytes, by which 0 differs from -0 and a NaN equals itself."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def stored_dtype(folder: Path | str) -> str:
    """Return the dtype in the configuration of a model folder; `float32` if the configuration has none.

    Raises:
        InputError: the folder has no model.
    """
    dtype = load_config(folder).dtype
    return str(dtype).removeprefix("torch.") if dtype else "float32"


def _export(options: argparse.Namespace) -> str:
    dtype = options.dtype or stored_dtype(options.model)
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: give one of {', '.join(DTYPES)}")
    masks = load_masks(options.mask)
    model, tokenizer = load_model(options.model, dtype), load_tokenizer(options.model)
    # In a folder without a tokenizer, transformers makes one of the model's family with an empty vocabulary.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise InputError(f"model folder {options.model}: it has no tokenizer; save the model's tokenizer there")
    if options.weights:
        load_weights(options.weights, prunable_linears(model))
    meta = {key: masks.header[key] for key in ("settings", "digest") if key in masks.header}
    export_model(model, tokenizer, masks, options.out, meta)
    return f"sparsity {masks.sparsity:.4f} in {len(masks.masks)} layers: {options.out}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    from transformers.utils.logging import disable_progress_bar

    parser = argparse.ArgumentParser(prog="python -m patch export", description=__doc__)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="the dense model and its tokenizer")
    parser.add_argument("--mask", required=True, metavar="FILE", help="its masks, a .safetensors file of this software")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="output folder; must not exist or must be empty")
    parser.add_argument("--weights", metavar="FILE", help="updated weights, for methods that update the kept weights")
    parser.add_argument("--dtype", help=f"{', '.join(DTYPES)} (the dtype in the model's configuration)")
    options = parser.parse_args(arguments)
    disable_progress_bar()
    return print_result(lambda: _export(options))
