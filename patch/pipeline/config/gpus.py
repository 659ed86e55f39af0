"""Presets of GPUs: memory and matrix throughput."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Fraction of the peak throughput that long training runs sustain. The cost model's fractions for each stage, which
# are from the paper's wall-clock times on H100, are relative to it.
SUSTAINED = 0.4

GpuName = Literal["A100", "H100", "H200", "A6000", "L40S"]


@dataclass(frozen=True)
class Gpu:
    """One GPU, from the data sheet of its vendor.

    Attributes:
        memory_gb: Memory in GB.
        peak_tflops: Peak throughput of dense bf16 matrix products in TFLOP/s: half of the figure with sparsity.
    """

    memory_gb: float
    peak_tflops: float

    @property
    def sustained_tflops(self) -> float:
        """Sustained throughput of dense bf16 matrix products in TFLOP/s."""
        return SUSTAINED * self.peak_tflops


# NVIDIA's data sheets of A100 80 GB, H100 SXM, H200 SXM, RTX A6000 and L40S.
GPUS: dict[GpuName, Gpu] = {
    "A100": Gpu(memory_gb=80, peak_tflops=312),
    "H100": Gpu(memory_gb=80, peak_tflops=989),
    "H200": Gpu(memory_gb=141, peak_tflops=989),
    "A6000": Gpu(memory_gb=48, peak_tflops=155),
    "L40S": Gpu(memory_gb=48, peak_tflops=362),
}
