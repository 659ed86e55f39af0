"""Tests that the planned memory and checkpoints of ProxSparse are those of real runs in one and several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patch.models.shapes import Shape, parameters
from patch.pipeline.resources.memory import learning_mb

# Smaller tensors are not counted; there are many, and all of them together are small.
COUNTED = 1 << 14
# The peak is in the backward pass of a block, or at the end of the pass with the gradients of the embeddings.
MODELS = {
    "blocks": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "vocab_size": 200},
    "embeddings": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 8000},
}


class PeakMemory(TorchDispatchMode):
    """Recorder of the largest number of bytes of tensors that were alive at once, also after storages are resized."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, Any] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = len(self._seen)
        for tensor in tree_leaves(result):
            tensor = getattr(tensor, "_local_tensor", tensor)
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen and storage.nbytes() >= COUNTED:
                    self._seen[storage._cdata] = storage._weak_ref()
        if len(self._seen) > known:
            self.bytes = max(self.bytes, sum(self._alive()))
        return result

    def _alive(self) -> list[int]:
        """Return the sizes of the storages that are still alive, and forget the others."""
        storages = {key: torch.UntypedStorage._new_with_weak_ptr(weak) for key, weak in self._seen.items()}
        for key, storage in storages.items():
            if storage is None:
                torch.UntypedStorage._free_weak_ref(self._seen.pop(key))
        return [storage.nbytes() for storage in storages.values() if storage is not None]


@pytest.fixture
def measured(
    tiny_model: Callable, sequences: Callable, run_proxsparse: Callable, in_processes: Callable, tmp_path: Path
) -> Callable[..., tuple[float, float]]:
    """Return a function that measures a run: peak MB of tensors in the first process, and MB of its checkpoint."""

    def measure(sizes: dict[str, int], processes: int, **changes: Any) -> tuple[float, float]:
        def run(rank: int) -> int:
            model = tiny_model("llama", num_attention_heads=4, num_key_value_heads=4, **sizes).bfloat16()
            with PeakMemory() as memory:
                run_proxsparse(model, batch_size=1, micro_batch_size=1, steps=2, **changes)
            return memory.bytes

        return in_processes(processes, run)[0] / 1e6, sum(
            file.stat().st_size for file in (tmp_path / "run").glob("*.pt")
        ) / 1e6

    return measure


def test_the_measure_sees_what_is_kept_and_resized() -> None:
    with PeakMemory() as memory:
        kept = [torch.zeros(10_000) for _ in range(5)]
        del kept[0]
        kept[0].untyped_storage().resize_(0)
        kept.append(torch.zeros(30_000))
    assert memory.bytes == 3 * 40_000 + 120_000


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS)
def test_planned_memory_and_checkpoints(sizes: dict[str, int], measured: Callable) -> None:
    shape = Shape(num_attention_heads=4, num_key_value_heads=4, head_dim=sizes["hidden_size"] // 4, **sizes)
    peak, saved = measured(sizes, 2, gradient_checkpointing=True)
    assert learning_mb(shape, "proxsparse", 2, 12, True, "cpu", 2) == pytest.approx(peak, rel=0.1)
    # Weights and two moments, which the processes save once together.
    assert 12 * parameters(shape) / 1e6 == pytest.approx(saved, rel=0.02)
