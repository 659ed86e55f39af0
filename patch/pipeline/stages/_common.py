"""Functions that the computing stages share."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils.logging import disable_progress_bar

from patch.errors import InputError
from patch.masks.packed import MaskSet, check_zeros, load_masks
from patch.models.loading import prunable_linears
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import ExpectedMask
from patch.pruning.weights import load_weights
from patch.settings import Section

# Options of glibc's `mallopt`. Blocks up to the largest threshold that it accepts come from the heap, which keeps some
# free memory. Otherwise each tensor of some MB is new memory, and its page faults take a tenth of a training step.
_MALLOC = {"M_MMAP_THRESHOLD": (-3, 32 << 20), "M_TRIM_THRESHOLD": (-1, 256 << 20)}


def prepare_device(device: str, gpus: int = 1) -> str:
    """Configure torch for ``device`` and return ``device``.

    Raises:
        InputError: The device is not available, or is `cuda` with fewer than ``gpus`` GPUs.
    """
    # Soft masks underflow at temperatures near 0.05, and denormals make a CPU several times slower.
    torch.set_flush_denormal(True)
    # Progress bars that last a few milliseconds would fill a stage's log.
    disable_progress_bar()
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option, value in _MALLOC.values():
            mallopt(option, value)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "`resources.device` is 'cuda' but torch sees no GPU here; set it to 'cpu' or run on a GPU node"
        )
    if device == "cuda" and (found := torch.cuda.device_count()) < gpus:
        raise InputError(
            f"the model needs {gpus} GPUs but torch finds {found} on {socket.gethostname()}; ask for more, or set "
            f"`resources.learn_gpus` to the {found} GPUs of a node"
        )
    return device


@contextmanager
def measured(device: str, gpus: int = 1) -> Iterator[dict[str, float]]:
    """Measure the block; at its end, the yielded dictionary has its `seconds` and the process' `peak_memory_mb`.

    The memory is that of the GPU on `cuda`, or the largest of the first ``gpus`` GPUs if they are several.
    """
    cost: dict[str, float] = {}
    started = time.monotonic()
    used = range(gpus) if gpus > 1 else (None,)
    if device == "cuda":
        for gpu in used:
            torch.cuda.reset_peak_memory_stats(gpu)
    yield cost
    cost["seconds"] = round(time.monotonic() - started, 3)
    peak = (
        max(map(torch.cuda.max_memory_allocated, used)) / 1e6
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    )
    cost["peak_memory_mb"] = round(peak, 1)


def mask_header(settings: Section, cost: dict[str, float]) -> dict[str, Any]:
    """Return the header of a mask file: the settings of the stage that made the mask, their digest, and the cost."""
    return {"settings": settings.model_dump(mode="json"), "digest": settings_digest(settings), "cost": cost}


def load_updated(
    path: Path, network: nn.Module, masks: MaskSet | None, expected: ExpectedMask | None, finetuned: str | None
) -> None:
    """Copy the weights of a run into its model: those that pruning has updated, or fine-tuned ones.

    Raises:
        InputError: `load_weights` fails, or fine-tuning has changed a zero of the mask.
    """
    load_weights(path, prunable_linears(network), finetuned or (expected.digest if expected else ""))
    if finetuned and masks:
        try:
            check_zeros(network, masks)
        except InputError as error:
            raise InputError(f"fine-tuned weights {path}: {error}; remove them to make them again") from None


def load_expected(path: Path | None, expected: ExpectedMask | None, name: str = "mask") -> MaskSet | None:
    """Read a mask file and check that it is the mask that the job's settings describe.

    Args:
        path: Path of the file, or None.
        expected: Description of the mask from the settings, or None for a job without this mask.
        name: Name of the input, for messages.

    Returns:
        The mask, or None for a job without this mask.

    Raises:
        InputError: `load_masks` fails; or the mask is missing or not expected; or the mask was made by another method,
            for another pattern, sparsity, tile or model, or with other settings.
    """
    if path is None and expected is None:
        return None
    if path is None or expected is None:
        given, wanted = path or "none", f"one of {expected.method}" if expected else "none"
        raise InputError(f"`{name}` is {given}, but the settings expect {wanted}")
    masks = load_masks(path)
    settings = masks.header.get("settings", {})
    found = {
        "method": settings.get("method"),
        "pattern": masks.pattern,
        # The settings of an imported mask have no target sparsity.
        "sparsity": settings.get("sparsity", expected.sparsity),
        "tile": masks.tile,
    }
    wrong = [
        f"{key} is {value!r}, expected {getattr(expected, key)!r}"
        for key, value in found.items()
        if value != getattr(expected, key)
    ]
    if not wrong and masks.header.get("digest") != expected.digest:
        wrong = ["it was made with other settings or for another model"]
    if wrong:
        raise InputError(
            f"mask {path} is not the one that this job needs: {'; '.join(wrong)}; remove it to make it again"
        )
    return masks
