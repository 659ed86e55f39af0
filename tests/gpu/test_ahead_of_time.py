"""Compilation of the Triton kernels for GPUs that are not there."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is installed on Linux only")

from benchmarks.ahead_of_time import (  # noqa: E402
    ARCHITECTURES,
    Architecture,
    Kernel,
    compiled,
    mask_kernels,
    product_kernels,
    proximal_kernel,
)

# The least and the largest block of a few rows, and many rows.
PRODUCTS = [kernel for rows in (16, 64, 65) for kernel in product_kernels(rows)]
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda found: f"sm_{found.capability}")


@every_architecture
@pytest.mark.parametrize("kernel", [*mask_kernels(), proximal_kernel(), *PRODUCTS], ids=lambda kernel: kernel.name)
def test_a_kernel_fits_the_architecture(kernel: Kernel, architecture: Architecture) -> None:
    found = compiled(kernel, architecture)
    assert found.spilled == 0, "registers suffice"
    assert found.shared <= architecture.shared_of_block
    assert found.blocks >= 1


@every_architecture
@pytest.mark.parametrize("kernel", PRODUCTS, ids=lambda kernel: kernel.name)
def test_products_use_the_tensor_cores_and_asynchronous_copies(kernel: Kernel, architecture: Architecture) -> None:
    found = compiled(kernel, architecture)
    assert found.matrix > 0
    assert found.asynchronous > 0
