"""Mask learning from `mask_args`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from patch.data.tokenization import find_separator
from patch.errors import InputError
from patch.learning.learn import learn
from patch.learning.learning_settings import Learning, method_defaults
from patch.learning.trackers import UNTRACKED, Tracking
from patch.masks.packed import MaskSet, save_masks
from patch.reference_api.api_settings import LEARNING_KEYS, SET_BY, ApiSettings
from patch.reference_api.arguments import MaskArguments, checked
from patch.reference_api.checkpoint import InitialMasks, compare_settings, digest_of, tokenizer_fingerprint
from patch.reference_api.datasets import find_text, training_sequences

# The public code always learns on this corpus, independent of the calibration data.
CORPUS = "slimpajama"


def learning_settings(arguments: MaskArguments, settings: ApiSettings) -> Learning:
    """Return the settings of a learning run: the arguments override the settings file, which overrides the recipe.

    Raises:
        InputError: a value is not allowed, or `local_bs` does not divide the batch.
    """
    given = dict(settings.learning)
    defaults = method_defaults(arguments.method, given.pop("recipe", "paper"))
    values = {key: value for key, value in defaults.items() if key in LEARNING_KEYS} | given
    batch = values.get("batch_size", Learning.model_fields["batch_size"].default)
    if isinstance(batch, int) and batch % arguments.local_bs:
        raise InputError(
            f"`mask_args.local_bs` is {arguments.local_bs}, which does not divide the batch of {batch} sequences; "
            "use a divisor"
        )
    given = {key: getattr(arguments, name) for key, name in SET_BY.items()}
    given |= {"hard": arguments.hard, "target": "block" if arguments.layer_target else "global"}
    return checked(Learning, values | given, "learning")


def check_initial_masks(arguments: MaskArguments, initial: InitialMasks) -> None:
    """Refuse arguments that do not fit the compressed model.

    Raises:
        InputError: the tile or the target differs, or tile learning gets masks that are not 2:4.
    """
    names = ("mask_tile_size", "target_sparsity_ratio")
    wanted = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    made = {name: initial.settings[name] for name in wanted}
    compare_settings("compressed_model was made", made, wanted, "call prepare_pruned_model with these")
    if arguments.method == "patch-tile" and initial.compressed.pattern != "2:4":
        raise InputError(
            f"`mask_args.joint_optim` is False, which keeps the one-shot 2:4 mask in sparse tiles, but "
            f"compressed_model was pruned with sparsity_type {initial.compressed.pattern!r}; use '2:4'"
        )


def learn_masks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    arguments: MaskArguments,
    learning: Learning,
    initial: InitialMasks,
    settings: ApiSettings,
    wandb: bool = False,
) -> MaskSet:
    """Learn the masks of a model with its original weights, which stay unchanged in the end.

    Another call resumes an interrupted run. The folder of the run keeps `curve.jsonl` and `mask.safetensors`.

    Raises:
        InputError: see `patch.learning.learn.learn`; or text is missing.
    """
    text = find_text(CORPUS, "learning", settings)
    tile, target = initial.settings["mask_tile_size"], initial.settings["target_sparsity_ratio"]
    seed, hybrid = initial.settings["seed"], arguments.method != "maskllm"
    values = learning.model_dump(mode="json")
    digest = digest_of([arguments.method, initial.settings, text.identity(), tokenizer_fingerprint(tokenizer), values])
    folder = Path(settings.folder) / f"{arguments.method}-{digest[:12]}"
    packed, checkpoints, curve = folder / "sequences.npy", folder / "checkpoints", folder / "curve.jsonl"
    run = {"method": arguments.method, "prior": initial.settings, "learning": values}
    tracking = Tracking(("wandb",), Path(settings.folder), folder.name, run) if wandb else UNTRACKED
    sequences = training_sequences(packed, text, tokenizer, learning)
    with _flushed_denormals():
        masks = learn(
            model,
            arguments.method,
            sequences,
            learning,
            target if hybrid else 0.5,
            tile if hybrid else None,
            seed,
            pattern_prior=initial.compressed.masks,
            tile_prior=initial.ranking.masks,
            frozen=initial.compressed.masks,
            folder=checkpoints,
            curve=curve,
            upstream=digest,
            tracking=tracking,
            separator=find_separator(tokenizer) if learning.cut_attention else None,
        )
    masks.header |= run
    save_masks(folder / "mask.safetensors", masks)
    shutil.rmtree(checkpoints)
    packed.unlink()
    print(f"{arguments.method}: sparsity {masks.sparsity:.4f}; curve {curve}", flush=True)
    return masks


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Flush denormals to zero on the CPU within the block; converged soft masks have many, which slow it down."""
    before = bool((torch.tensor(1e-30) * 1e-10).item() == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
