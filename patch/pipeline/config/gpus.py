"""Presets of GPUs: memory, matrix throughput and bandwidth to other GPUs and to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Fraction of the peak throughput that long training runs sustain. The cost model's fractions for each stage, which
# are from the paper's wall-clock times on H100, are relative to it.
SUSTAINED = 0.4

# Bandwidth from a GPU to those of other nodes, in one direction, in GB/s: InfiniBand of 400 Gbit/s for each GPU.
INFINIBAND_GB_S = 50.0

GpuName = Literal["A100", "H100", "H200", "A6000", "L40S"]


@dataclass(frozen=True)
class Gpu:
    """One GPU, from the data sheet of its vendor.

    Attributes:
        memory_gb: Memory in GB.
        peak_tflops: Peak throughput of dense bf16 matrix products in TFLOP/s: half of the figure with sparsity.
        link_gb_s: Bandwidth to the other GPUs of a node, in one direction, in GB/s: half of the figure for NVLink, or
            PCIe 4.0 with 16 lanes for cards whose NVLink joins no more than two.
        host_gb_s: Bandwidth to the host's memory, in one direction, in GB/s: PCIe 4.0 or 5.0 with 16 lanes.
    """

    memory_gb: float
    peak_tflops: float
    link_gb_s: float
    host_gb_s: float

    @property
    def sustained_tflops(self) -> float:
        """Sustained throughput of dense bf16 matrix products in TFLOP/s."""
        return SUSTAINED * self.peak_tflops


# NVIDIA's data sheets of A100 80 GB, H100 SXM, H200 SXM, RTX A6000 and L40S.
GPUS: dict[GpuName, Gpu] = {
    "A100": Gpu(memory_gb=80, peak_tflops=312, link_gb_s=300, host_gb_s=32),
    "H100": Gpu(memory_gb=80, peak_tflops=989, link_gb_s=450, host_gb_s=64),
    "H200": Gpu(memory_gb=141, peak_tflops=989, link_gb_s=450, host_gb_s=64),
    "A6000": Gpu(memory_gb=48, peak_tflops=155, link_gb_s=32, host_gb_s=32),
    "L40S": Gpu(memory_gb=48, peak_tflops=362, link_gb_s=32, host_gb_s=32),
}
