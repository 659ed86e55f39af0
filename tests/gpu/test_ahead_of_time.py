"""Compilation of the Triton kernels for GPUs that are not there.

Each kernel is compiled in each configuration for one architecture; `python -m benchmarks.gpu_static` compiles all of
them for all architectures, and fails for the same faults.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is installed on Linux only")

from benchmarks import ahead_of_time  # noqa: E402
from benchmarks.ahead_of_time import (  # noqa: E402
    ARCHITECTURES,
    Architecture,
    Kernel,
    Resources,
    faults,
    mask_kernels,
    product_kernels,
    proximal_kernel,
)

# The least and the largest block of a few rows, and many rows.
KERNELS = [*mask_kernels(), proximal_kernel(), *(kernel for rows in (16, 64, 65) for kernel in product_kernels(rows))]
PAIRS = [
    pytest.param(kernel, architecture, id=f"{kernel.name}-sm_{architecture.capability}")
    for kernel, architecture in zip(KERNELS, cycle(ARCHITECTURES), strict=False)
]


@pytest.mark.parametrize(("kernel", "architecture"), PAIRS)
def test_a_kernel_fits_the_architecture(kernel: Kernel, architecture: Architecture) -> None:
    assert faults(kernel, architecture) == []


@pytest.mark.parametrize(
    ("kernel", "changes", "expected"),
    [
        (KERNELS[0], {"matrix": 0, "asynchronous": 0}, []),
        (KERNELS[-1], {}, []),
        (KERNELS[-1], {"spilled": 8}, ["spills 8 bytes"]),
        (KERNELS[-1], {"shared": 102_400}, ["needs 102400 bytes of shared memory, a block has 101376"]),
        (KERNELS[-1], {"blocks": 0}, ["no block fits a multiprocessor"]),
        (KERNELS[-1], {"matrix": 0}, ["does not use the tensor cores"]),
        (KERNELS[-1], {"asynchronous": 0}, ["has no asynchronous copies"]),
    ],
)
def test_each_fault_is_named(
    kernel: Kernel, changes: dict[str, int], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"registers": 64, "spilled": 0, "shared": 1024, "blocks": 2, "occupancy": 0.5}
    fields |= {"matrix": 1, "asynchronous": 1}
    monkeypatch.setattr(ahead_of_time, "compiled", lambda *_: Resources(**fields | changes))
    assert faults(kernel, ARCHITECTURES[1]) == expected
