"""What the computing stages share."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils.logging import disable_progress_bar

from patch.errors import InputError


def prepare_device(device: str) -> str:
    """Set the process up for ``device`` and return it.

    Raises:
        InputError: there is no such device.
    """
    # With temperatures near 0.05 soft masks underflow, and denormals make a CPU several times slower.
    torch.set_flush_denormal(True)
    # Bars of a few milliseconds each would be all that a stage's log shows.
    disable_progress_bar()
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "`resources.device` is 'cuda' but torch sees no GPU here; set it to 'cpu' or run on a GPU node"
        )
    return device


@contextmanager
def measured(cost: dict[str, float], device: str) -> Iterator[None]:
    """Fill ``cost`` with the block's `seconds` and the process' `peak_memory_mb` (of the GPU on `cuda`)."""
    started = time.monotonic()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    cost["seconds"] = round(time.monotonic() - started, 3)
    peak = (
        torch.cuda.max_memory_allocated() / 1e6
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    )
    cost["peak_memory_mb"] = round(peak, 1)


def show_blocks(name: str):  # noqa: ANN201 - a progress callback
    """A callback that prints how many blocks are done."""
    return lambda done, total: print(f"{name}: block {done}/{total}", flush=True)
