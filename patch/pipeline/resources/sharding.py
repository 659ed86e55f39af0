"""Sharding of a learning run over GPUs: whether the frozen weights are sharded, and the exchange beside the arithmetic.

Masked weights and gradients of a layer are exchanged while other layers compute (`patch.masks.exchange`), so an
exchange is hidden as far as it takes no longer than the arithmetic of the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from patch.learning.learning_settings import Learning
from patch.models.shapes import Shape, parameters
from patch.pipeline.config.experiment import Resources
from patch.pipeline.config.gpus import GPUS, INFINIBAND_GB_S
from patch.pipeline.resources.memory import GPU_SLACK, exchanged_gb, learning_mb


def learning_need(
    shape: Shape, method: str, size: int, settings: Learning, resources: Resources, processes: int
) -> tuple[float, bool]:
    """Return the peak memory of a learning run in each process in MB, and whether it shards the frozen weights.

    Args:
        shape: Shape of the model.
        method: Name of a learned method.
        size: Bytes of a weight.
        settings: Settings of the run.
        resources: Resources of the experiment.
        processes: Number of processes.
    """
    tokens, checkpointed = settings.micro_batch_size * settings.seqlen, settings.gradient_checkpointing
    needs = [
        learning_mb(shape, method, size, tokens, checkpointed, resources.device, processes, sharded)
        for sharded in (False, True)
    ]
    chosen, on_gpu = resources.shard_weights, resources.device == "cuda"
    if chosen == "auto":
        chosen = on_gpu and GPU_SLACK * needs[False] > 1000 * resources.memory_gb
    sharded = bool(chosen) and processes > 1 and method not in ("proxsparse", "maskpro")
    return needs[sharded], sharded


@dataclass(frozen=True)
class Exchange:
    """Exchange of a step of mask learning, for each GPU.

    Attributes:
        gb: GB that the GPU sends, and receives.
        link_seconds: Seconds of it at the bandwidth to GPUs of the same node.
        network_seconds: Seconds of it at the bandwidth to GPUs of other nodes.
        compute_seconds: Seconds of the step's arithmetic.
    """

    gb: float
    link_seconds: float
    network_seconds: float
    compute_seconds: float

    def hidden(self, seconds: float) -> float:
        """Return the fraction of an exchange of some seconds that the arithmetic hides."""
        return min(1.0, self.compute_seconds / seconds)


def step_exchange(
    shape: Shape, size: int, settings: Learning, resources: Resources, processes: int, efficiency: float
) -> Exchange:
    """Return the exchange of a step of mask learning with sharded rows.

    Args:
        shape: Shape of the model.
        size: Bytes of a weight.
        settings: Settings of the run.
        resources: Resources of the experiment, with the model of the GPUs.
        processes: Number of GPUs.
        efficiency: Fraction of the GPU's sustained throughput that the arithmetic reaches.
    """
    gpu, sequences = GPUS[resources.gpu], settings.batch_size / processes
    gb = exchanged_gb(shape, size, settings.gradient_checkpointing, processes) * sequences / settings.micro_batch_size
    flops = 6.0 * parameters(shape) * settings.seqlen * sequences
    seconds = flops / (gpu.sustained_tflops * 1e12 * efficiency)
    return Exchange(gb, gb / gpu.link_gb_s, gb / INFINIBAND_GB_S, seconds)
