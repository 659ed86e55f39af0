"""Fixtures: CUDA code on a machine without a GPU, with stand-ins for what needs a driver."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from patch.inference import backends, checked, generation
from patch.masks import kernels, proximal

from .cuda_tensor import on_host
from .cuda_walk import CudaWalk
from .stand_ins import MaskKernels, PackedProducts, ProximalOperator

# A tile of 16 divides every layer.
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
# Linear layers of a block.
LAYERS = 7


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaWalk]:
    """Yield a walk, in which the test runs, with stand-ins for Triton kernels, CUDA events and graphs."""
    walk, caches = CudaWalk(), (kernels._fast_kernel, proximal._gpu_kernel, backends._load_if_available)
    monkeypatch.setitem(sys.modules, "patch.masks.kernels.fused", MaskKernels(walk))
    monkeypatch.setitem(sys.modules, "patch.masks.kernels.proximal_triton", ProximalOperator(walk))
    monkeypatch.setitem(sys.modules, "patch.inference.backends.fused", PackedProducts(walk))
    monkeypatch.setattr(checked, "_check_tensors", _checking_on_host(checked._check_tensors))
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: walk.wait("synchronize"))
    monkeypatch.setattr(generation, "captured", lambda function: _captured(walk, function))
    for cached in caches:
        cached.cache_clear()
    with walk:
        yield walk
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def llama(tiny_model: Callable, walk: CudaWalk) -> Callable[..., torch.nn.Module]:
    """Return a function that makes a frozen random model of some blocks; ``device`` is where it is moved."""

    def make(blocks: int = 2, device: str = "cuda", **changes: Any) -> torch.nn.Module:
        return tiny_model("llama", num_hidden_layers=blocks, **SIZES, **changes).to(device)

    return make


def _checking_on_host(check: Callable[..., None]) -> Callable[..., None]:
    """Return a check of a packed weight's parts that accepts tensors of the walk, which are no plain tensors."""

    def checking(*parts: torch.Tensor | None) -> None:
        assert len({part.device for part in parts if part is not None}) == 1
        check(*map(on_host, parts))

    return checking


class _Event:
    """Stand-in of a CUDA event."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        pass

    def elapsed_time(self, other: _Event) -> float:
        return 1.0


def _captured(walk: CudaWalk, function: Callable[[], None]) -> Callable[[], None]:
    """Return a function whose third call has been checked as a CUDA graph's capture: the host must not wait in it."""
    for _ in range(2):
        function()
    before = walk.synchronizations.copy()
    function()
    assert walk.synchronizations == before, walk.synchronizations - before
    return function
