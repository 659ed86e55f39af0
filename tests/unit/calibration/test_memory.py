"""Tests that a walk needs the memory of one block and one batch, for any depth and number of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patch.masks.nm import NM
from patch.models.loading import prunable_linears
from patch.pruning.prune import prune


class PeakMemory(TorchDispatchMode):
    """Recorder of the largest number of bytes of tensors that were alive at once."""

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self._known = {parameter.untyped_storage()._cdata for parameter in known.parameters()}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._known:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return result


def peak(model: nn.Module, sequences: np.ndarray, method: str, **options: Any) -> int:
    """Return the peak bytes besides the model's weights and the masks' bits."""
    with PeakMemory(model) as memory:
        masks = prune(model, method, NM(2, 4), sequences, batch_size=2, **options)
    del masks
    return memory.bytes


def mask_bytes(model: nn.Module) -> int:
    return sum(linear.weight.numel() // 8 for linear in prunable_linears(model).values())


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_peak_memory_grows_neither_with_depth_nor_with_samples(
    method: str, propagate: str, tiny_model: Callable, sequences: Callable
) -> None:
    def measure(blocks: int, samples: int) -> tuple[int, int]:
        model = tiny_model("llama", num_hidden_layers=blocks)
        return peak(model, sequences(samples, 40), method, propagate=propagate), mask_bytes(model)

    shallow, few_bits = measure(4, 4)
    deep, many_bits = measure(24, 4)
    many, _ = measure(4, 64)
    assert deep - many_bits <= shallow - few_bits + 256, "beside the bits of the masks nothing may grow with depth"
    assert many <= shallow, "nothing may grow with the number of samples"
    one_batch = 2 * 40 * 24 * 4
    assert shallow > one_batch, "the measure must see at least a batch of hidden states"


def test_the_measure_sees_what_is_kept() -> None:
    model = nn.Linear(1, 1)
    with PeakMemory(model) as memory:
        kept = [torch.zeros(1000) for _ in range(5)]
        del kept
        model(torch.zeros(1))
    assert memory.bytes == 5 * 4000
