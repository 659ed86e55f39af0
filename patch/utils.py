"""The public code's `utils`: load a model, prune it once, evaluate it. See docs/reference-api.md."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patch.errors import InputError
from patch.evaluation.harness import DATA_VARIABLE, TaskEvaluator, mean_accuracy, wrap_model
from patch.evaluation.lm_eval_model import AlignedLM
from patch.evaluation.metric import accuracy_names
from patch.evaluation.perplexity import perplexity
from patch.evaluation.tasks import make_task_data
from patch.models.loading import prunable_linears, weight_matrix
from patch.reference_api import loading
from patch.reference_api.api_settings import ApiSettings, load_settings
from patch.reference_api.arguments import EvalDataset, PruneArguments, read_arguments, tile_side
from patch.reference_api.checkpoint import compare_settings, load_initial_masks, save_initial_masks
from patch.reference_api.datasets import find_text, perplexity_sequences
from patch.reference_api.pruning import Pruner

__all__ = ["evaluate", "get_llm", "prepare_pruned_model"]


def get_llm(
    model_name: str | Path,
    local_files_only: bool = False,
    hf_token: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, AlignedLM]:
    """Load a causal language model and wrap it for lm-eval.

    Args:
        model_name: id on the hub, or a folder that `save_pretrained` wrote, with its tokenizer.
        local_files_only: True to use the local cache alone.
        hf_token: token for gated models; `hf auth login` or the variable `HF_TOKEN` work as well.
        dtype: dtype of the weights; `auto` is that of the files.
        device: device of the model; by default the GPU if there is one.
        options: further options: `revision`, `cache_dir`, `subfolder`, `attn_implementation`.

    Returns:
        The model, frozen and in evaluation mode, and its wrapper.

    Raises:
        InputError: there is no such model, or an argument is not allowed.
    """
    name = loading.local_name(model_name)
    model = loading.load_causal_lm(name, local_files_only, hf_token, dtype, device, options)
    tokenizer = loading.load_tokenizer(name, local_files_only, hf_token, options)
    return model, wrap_model(model, tokenizer, batch_size=1)


def prepare_pruned_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint_name: str | Path,
    prune_args: Any,
    mask_tile_size: int | tuple[int, int],
    target_sparsity_ratio: float,
    seed: int = 0,
) -> PreTrainedModel:
    """Prune a model once, in place, and attach the masks that learning starts from.

    Args:
        model: model with its original weights.
        tokenizer: its tokenizer.
        checkpoint_name: file of the masks; read if it exists, else made.
        prune_args: arguments, see `patch.reference_api.arguments.PruneArguments`; a dict or an object.
        mask_tile_size: side of a tile.
        target_sparsity_ratio: sparsity of the masks that will be learned, 0 to 0.5.
        seed: seed of the calibration sequences, and of learning.

    Returns:
        ``model``, pruned, with the masks as its attribute `patch_priors`.

    Raises:
        InputError: an argument cannot be honoured, or the checkpoint was made with other settings.
    """
    arguments = read_arguments(PruneArguments, prune_args, "prune_args")
    tile = _tile_of(model, mask_tile_size)
    target = target_sparsity_ratio
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 <= target <= 0.5:
        raise InputError(f"`target_sparsity_ratio` is {target!r}; use 0 to 0.5, which is 2:4 everywhere")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"`seed` is {seed!r}; use a whole number from 0 on")
    if not isinstance(checkpoint_name, str | Path) or not str(checkpoint_name) or Path(checkpoint_name).is_dir():
        raise InputError(f"`checkpoint_name` is {checkpoint_name!r}; give the name of a file")
    path = Path(checkpoint_name)
    pruner = Pruner(model, tokenizer, arguments, tile, float(target), seed, load_settings())
    before = getattr(model, "patch_priors", None)
    initial = load_initial_masks(path, pruner.settings, model) if path.exists() else None
    if before is not None:
        compare_settings("model is pruned already,", before.settings, pruner.settings, "load it anew with get_llm")
        if initial is None:
            save_initial_masks(path, before)
        return model
    if initial is None:
        initial = pruner.prune()
        save_initial_masks(path, initial)
    else:
        pruner.prune_again(initial)
    model.patch_priors = initial
    return model


def evaluate(
    model: PreTrainedModel,
    lm_eval_model: AlignedLM,
    tokenizer: PreTrainedTokenizerBase,
    evaluate_perplexity: bool = True,
    eval_dataset: str = "wikitext2",
    eval_batch_size: int = 1,
    test_lmharness: bool = True,
) -> tuple[float | None, dict[str, float]]:
    """Measure a model.

    Args:
        model: a causal language model.
        lm_eval_model: the wrapper of the model.
        tokenizer: its tokenizer.
        evaluate_perplexity: True to measure perplexity.
        eval_dataset: data set of the perplexity, `wikitext2` or `ptb`.
        eval_batch_size: sequences, and requests, per forward pass.
        test_lmharness: True to measure the zero-shot tasks.

    Returns:
        Perplexity, None if not asked for; and task -> accuracy in [0, 1] with their mean as `average`, empty if not
        asked for. Tasks with generated answers have one number for each filter, `<task>/<filter>`, outside the mean.

    Raises:
        InputError: an argument cannot be honoured, or there is no text or no data.
    """
    if evaluate_perplexity and eval_dataset not in get_args(EvalDataset):
        supported = " or ".join(map(repr, get_args(EvalDataset)))
        raise InputError(f"`eval_dataset` is {eval_dataset!r}, which is not supported for perplexity; use {supported}")
    if isinstance(eval_batch_size, bool) or not isinstance(eval_batch_size, int) or eval_batch_size < 1:
        raise InputError(f"`eval_batch_size` is {eval_batch_size!r}; use a whole number from 1 on")
    if getattr(lm_eval_model, "model", model) is not model:
        raise InputError("`lm_eval_model` holds another model than `model`; give the two that one call returned")
    settings = load_settings()
    value = None
    if evaluate_perplexity:
        value = perplexity(model, perplexity_sequences(model, tokenizer, eval_dataset, settings), eval_batch_size).value
    return value, _accuracies(model, tokenizer, eval_batch_size, settings) if test_lmharness else {}


def _accuracies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int, settings: ApiSettings
) -> dict[str, float]:
    evaluation = settings.evaluation
    include = Path(evaluation.include_path) if evaluation.include_path else None
    with tempfile.TemporaryDirectory() as folder:
        data = None
        if include and not os.environ.get(DATA_VARIABLE):
            data = Path(folder)
            with find_text(evaluation.task_data, "test", settings).documents() as documents:
                make_task_data(list(documents), evaluation.task_samples, 0, data)
        evaluator = TaskEvaluator(model, tokenizer, evaluation.tasks, include, data, batch_size, evaluation.limit)
        metrics = {key: metric for name in evaluation.tasks for key, metric in evaluator.measure(name).items()}
    accuracies = {name: metrics[name] for name in accuracy_names(metrics)}
    average = {"average": mean_accuracy(accuracies).value} if accuracies else {}
    return {name: metric.value for name, metric in metrics.items()} | average


def _tile_of(model: PreTrainedModel, size: int | tuple[int, int]) -> int:
    """Return the side of a tile that divides every layer; one that is larger than a layer ends with it."""
    try:
        tile = tile_side(size)
    except ValueError as error:
        raise InputError(f"`mask_tile_size`: {error}") from None
    shapes = {name: tuple(weight_matrix(linear).shape) for name, linear in prunable_linears(model).items()}
    for name, shape in shapes.items():
        if any(length > tile and length % tile for length in shape):
            sides = {length for each in shapes.values() for length in each}
            good = [str(side) for side in range(4, min(sides) + 1, 4) if all(length % side == 0 for length in sides)]
            raise InputError(
                f"`mask_tile_size` is {tile}, which does not divide {name} {list(shape)}; "
                f"use {', '.join(good) or 'another model: this one has no common tile'}"
            )
    return tile
