"""One-shot pruning for `prepare_pruned_model`: the pruned model and the mask initialization of learning."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import PreTrainedTokenizerBase

from patch.errors import InputError
from patch.hub.errors import hub_errors
from patch.learning.finetune import finetune
from patch.learning.finetuning_settings import Finetuning
from patch.learning.learning_settings import METHOD_DEFAULTS, Learning
from patch.learning.proxsparse import proxsparse
from patch.masks.nm import Unstructured, parse_pattern
from patch.masks.packed import MaskSet, apply_masks, check_zeros
from patch.masks.published_masks import read_published
from patch.methods import get_method
from patch.models.loading import prunable_linears, weight_matrix
from patch.pruning.prune import prune
from patch.pruning.pruning_settings import Pruning, Wanda
from patch.pruning.weights import load_weights, save_weights
from patch.pruning.weights_header import weights_digest
from patch.reference_api.api_settings import ApiSettings
from patch.reference_api.arguments import PruneArguments, checked
from patch.reference_api.checkpoint import InitialMasks, digest_of, model_fingerprint, tokenizer_fingerprint
from patch.reference_api.datasets import (
    CALIBRATION_SEQLEN,
    Text,
    calibration_sequences,
    find_text,
    sequence_length,
    training_sequences,
)

# Name of the file in MaskLLM's repositories.
MASK_FILE = "mask_compressed.npz"
# The public code fine-tunes on this corpus, independent of the calibration data.
FINETUNING_CORPUS = "c4"


class Pruner:
    """Pruner of one call of `prepare_pruned_model`.

    Args:
        model: model with its original weights, or one that this function pruned.
        tokenizer: its tokenizer.
        arguments: the checked `prune_args`.
        tile: side of a tile.
        target: sparsity of the masks that will be learned.
        seed: seed of the calibration sequences and of learning.
        settings: settings of the process.

    Raises:
        InputError: the sequence length exceeds the model's context, or text is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        arguments: PruneArguments,
        tile: int,
        target: float,
        seed: int,
        settings: ApiSettings,
    ) -> None:
        self._model, self._tokenizer, self._arguments = model, tokenizer, arguments
        self._target, self._seed, self._folder = target, seed, Path(settings.folder)
        self._one_shot = get_method(arguments.method).stage == "prune"
        # Learned methods have no weight scores that could rank tiles.
        self._ranker = arguments.method if self._one_shot else "sparsegpt"
        self._calibrates = get_method(self._ranker).statistics != "none"
        self._text: Text | None = None
        self._seqlen: int | None = None
        if self._calibrates:
            self._text = find_text(arguments.calibration_dataset, "calibration", settings)
            given = settings.calibration.seqlen
            self._seqlen = sequence_length("calibration.seqlen", given, CALIBRATION_SEQLEN, model)
        self._pruning = Pruning(wanda=Wanda(shift_zero_metrics=arguments.shift_zero_metrics))
        self._mask_file = _find_mask_file(arguments.maskllm_checkpoint) if arguments.method == "maskllm" else None
        self._proxsparse: Learning | None = None
        if arguments.method == "proxsparse":
            values = METHOD_DEFAULTS["proxsparse"] | settings.proxsparse | {"seqlen": self._seqlen}
            self._proxsparse = checked(Learning, values, "proxsparse")
        self._finetuning: Finetuning | None = None
        if arguments.fine_tune:
            self._finetuning_text = find_text(FINETUNING_CORPUS, "calibration", settings)
            values = {"use": {"corpus": FINETUNING_CORPUS, "split": "calibration"}} | settings.finetuning
            default = Finetuning.model_fields["seqlen"].default
            values["seqlen"] = sequence_length("finetuning.seqlen", values.get("seqlen"), default, model)
            self._finetuning = checked(Finetuning, values, "finetuning")
        self.settings = self._depends_on(tile)

    def _depends_on(self, tile: int) -> dict[str, Any]:
        arguments, before = self._arguments, getattr(self._model, "patch_priors", None)
        finetuning = {}
        if self._finetuning:
            finetuning["fine_tune"] = self._finetuning.model_dump(mode="json")
            finetuning |= {"fine_tune text": self._finetuning_text.identity()}
            finetuning |= {"fine_tune tokenizer": tokenizer_fingerprint(self._tokenizer)}
        return finetuning | {
            "prune_method": arguments.prune_method,
            "sparsity_type": arguments.sparsity_type,
            "sparsity_ratio": arguments.sparsity_ratio,
            "mask_tile_size": tile,
            "target_sparsity_ratio": self._target,
            "seed": self._seed,
            "nsamples": arguments.nsamples if self._calibrates else None,
            "calibration_dataset": arguments.calibration_dataset if self._calibrates else None,
            "calibration text": self._text.identity() if self._text else None,
            "calibration.seqlen": self._seqlen,
            "tokenizer": tokenizer_fingerprint(self._tokenizer) if self._calibrates else None,
            "shift_zero_metrics": arguments.shift_zero_metrics or None,
            "maskllm_checkpoint": _digest_of_file(self._mask_file) if self._mask_file else None,
            "proxsparse": self._proxsparse.model_dump(mode="json") if self._proxsparse else None,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            # Digest of the weights before any pruning.
            "model": before.settings["model"] if before else model_fingerprint(self._model),
        }

    def _sequences(self) -> np.ndarray | None:
        if not self._text:
            return None
        return calibration_sequences(self._text, self._tokenizer, self._arguments, self._seqlen, self._seed)

    def prune(self) -> InitialMasks:
        """Prune the model in place; a failure restores its weights."""
        sequences = self._sequences()
        with _restored(self._model, always=True):
            ranking = prune(self._model, self._ranker, Unstructured(self._target), sequences, settings=self._pruning)
        with _restored(self._model):
            compressed = self._compress(sequences)
            self._finetune(compressed)
        return InitialMasks(compressed, ranking, self.settings)

    def prune_again(self, initial: InitialMasks) -> None:
        """Prune the model in place with known masks.

        Raises:
            InputError: the method updates the kept weights, and its rerun gives other masks.
        """
        if not get_method(self._arguments.method).updates_weights:
            with _restored(self._model):
                apply_masks(self._model, initial.compressed)
                self._finetune(initial.compressed)
            return
        # The file holds only masks; updated weights need a rerun of the method.
        with _restored(self._model):
            masks = self._compress(self._sequences()).masks
            if any(not mask.equal(initial.compressed.masks[name]) for name, mask in masks.items()):
                raise InputError(
                    f"{self._arguments.prune_method}, run again for the weights that it updates, gives other masks "
                    "than those in the checkpoint; was it made on another device? Give another checkpoint_name"
                )
            self._finetune(initial.compressed)

    def _compress(self, sequences: np.ndarray | None) -> MaskSet:
        arguments = self._arguments
        if self._one_shot:
            pattern = parse_pattern(arguments.sparsity_type, arguments.sparsity_ratio)
            return prune(self._model, arguments.method, pattern, sequences, settings=self._pruning)
        if arguments.method == "proxsparse":
            masks = self._learn(sequences)
        else:
            masks = read_published(self._mask_file, self._model, "2:4")
        apply_masks(self._model, masks)
        return masks

    def _finetune(self, masks: MaskSet) -> None:
        """Fine-tune the pruned model in place with `fine_tune`, or read the weights that an equal call has saved."""
        if self._finetuning is None:
            return
        digest, linears, tuning = digest_of(self.settings), prunable_linears(self._model), self._finetuning
        folder = self._folder / f"fine_tune-{digest[:12]}"
        path, packed, checkpoints = folder / "weights.safetensors", folder / "sequences.npy", folder / "checkpoints"
        if weights_digest(path) == digest:
            load_weights(path, linears, digest)
            check_zeros(self._model, masks)
            return
        sequences = training_sequences(packed, self._finetuning_text, self._tokenizer, tuning)
        files = {"folder": checkpoints, "curve": folder / "curve.jsonl", "upstream": digest}
        finetune(self._model, masks, "full", sequences, tuning, self._seed, **files)
        save_weights(path, linears, digest)
        shutil.rmtree(checkpoints)
        packed.unlink()

    def _learn(self, sequences: np.ndarray) -> MaskSet:
        digest = digest_of(self.settings)
        folder = self._folder / f"prox_sparse-{digest[:12]}"
        checkpoints = folder / "checkpoints"
        files = {"folder": checkpoints, "curve": folder / "curve.jsonl", "upstream": digest}
        masks = proxsparse(self._model, sequences, self._proxsparse, self._seed, **files)
        shutil.rmtree(checkpoints)
        return masks


def _find_mask_file(checkpoint: str | Path) -> Path:
    """Return the path of a published mask file, which is downloaded if ``checkpoint`` is a repository of the hub.

    Raises:
        InputError: there is no such file and no such repository, or the hub cannot be reached.
    """
    if Path(checkpoint).is_file():
        return Path(checkpoint)
    what = f"`prune_args.maskllm_checkpoint` is {str(checkpoint)!r}, which is no file"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(checkpoint)):
        raise InputError(f"{what}; give the path of `{MASK_FILE}` or a repository of the hub, `owner/name`")
    with hub_errors(f"{what}, and {MASK_FILE} of the repository of that name cannot be fetched"):
        return Path(hf_hub_download(str(checkpoint), MASK_FILE))


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, partial(blake2b, digest_size=12)).hexdigest()


@contextmanager
def _restored(model: nn.Module, always: bool = False) -> Iterator[None]:
    """Restore the prunable weights from host memory after a failed block, or ``always``."""
    linears = prunable_linears(model)
    originals = {name: weight_matrix(linear).detach().to("cpu", copy=True) for name, linear in linears.items()}
    done = False
    try:
        yield
        done = not always
    finally:
        if not done:
            with torch.no_grad():
                for name, linear in linears.items():
                    weight_matrix(linear).copy_(originals[name])
