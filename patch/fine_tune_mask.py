"""The public code's `fine_tune_mask`: learn which weights of a model stay. See docs/reference-api.md."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patch.errors import InputError
from patch.evaluation.harness import wrap_model
from patch.evaluation.lm_eval_model import AlignedLM
from patch.masks.packed import apply_masks
from patch.reference_api import loading
from patch.reference_api.api_settings import load_settings
from patch.reference_api.arguments import MaskArguments, read_arguments
from patch.reference_api.checkpoint import InitialMasks, model_fingerprint
from patch.reference_api.datasets import check_length
from patch.reference_api.learning import check_initial_masks, learn_masks, learning_settings

__all__ = ["learn_mask"]


def learn_mask(
    model_name: str | Path,
    compressed_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mask_args: Any,
    local_files_only: bool = False,
    hf_token: str | None = None,
    wandb: bool = False,
) -> tuple[PreTrainedModel, AlignedLM]:
    """Learn masks and apply them to the original weights.

    Args:
        model_name: id or folder of the original weights, the one that `get_llm` was called with.
        compressed_model: model that `prepare_pruned_model` returned, with the masks that learning starts from.
        tokenizer: its tokenizer.
        mask_args: arguments, see `patch.reference_api.arguments.MaskArguments`; a dict or an object.
        local_files_only: True to use the local cache alone.
        hf_token: token for gated models.
        wandb: True to report the curve to Weights & Biases too; offline, unless `WANDB_MODE` is set to `online`.

    Returns:
        The sparse model, its kept weights bit for bit the original ones, and its wrapper for lm-eval. With
        `learnable_mask` False, ``compressed_model`` as it is.

    Raises:
        InputError: an argument cannot be honoured, ``compressed_model`` has no masks or is of another model, or
            there is no text.
    """
    arguments = read_arguments(MaskArguments, mask_args, "mask_args")
    if wandb and importlib.util.find_spec("wandb") is None:
        raise InputError("`wandb` is True, but the package is not installed; pip install wandb, or use False")
    initial = getattr(compressed_model, "patch_priors", None)
    if not isinstance(initial, InitialMasks):
        raise InputError(
            "`compressed_model` has no masks to start from; use the result of prepare_pruned_model, not a model that "
            "was loaded from a folder or copied into another"
        )
    if not arguments.learnable_mask:
        return compressed_model, wrap_model(compressed_model, tokenizer, batch_size=1)
    check_initial_masks(arguments, initial)
    check_length("mask_args.fine_tuning_sequence_length", arguments.fine_tuning_sequence_length, compressed_model)
    target = initial.settings["target_sparsity_ratio"]
    if arguments.mask_llm and target != 0.5:
        warnings.warn(f"mask_llm makes every group 2:4: sparsity 0.5, not the target {target:g}", stacklevel=2)
    settings = load_settings()
    learning = learning_settings(arguments, settings)
    name, options = loading.local_name(model_name), getattr(compressed_model, "patch_options", {})
    place = {"dtype": compressed_model.dtype, "device": compressed_model.device}
    model = loading.load_causal_lm(name, local_files_only, hf_token, **place, options=options)
    if model_fingerprint(model) != initial.settings["model"]:
        raise InputError(
            f"`model_name` is {name!r}, whose weights are not those that compressed_model was pruned from; "
            "give the name that get_llm was called with"
        )
    apply_masks(model, learn_masks(model, tokenizer, arguments, learning, initial, settings, wandb))
    return model, wrap_model(model, tokenizer, batch_size=1)
