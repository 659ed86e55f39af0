"""Placement of a learning run's tensors: sharded over GPUs, or in the host's memory, and the copies that this takes.

Masked weights and gradients of a layer are exchanged while other layers compute (`patch.masks.exchange`), so an
exchange is hidden as far as it takes no longer than the arithmetic of the step. Copies between a GPU and the host's
memory wait for the arithmetic, and it for them (`patch.masks.host_memory`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

from patch.learning.learning_settings import Learning
from patch.models.shapes import Shape, parameters
from patch.pipeline.config.experiment import Resources
from patch.pipeline.config.gpus import GPUS, INFINIBAND_GB_S
from patch.pipeline.resources.memory import GPU_SLACK, exchanged_gb, learned_parameters, learning_mb


@dataclass(frozen=True)
class Placement:
    """Placement of the tensors of a learning run.

    Attributes:
        mb: Peak memory of each process in MB, on a GPU without what is in the host's memory.
        shard_weights: Whether the processes shard the frozen weights.
        offload: Whether the gradients and moments of the pattern logits are in the host's memory.
    """

    mb: float
    shard_weights: bool
    offload: bool


def place(shape: Shape, method: str, size: int, settings: Learning, resources: Resources, processes: int) -> Placement:
    """Return the first placement that fits a GPU, of those that `shard_weights` and `offload` allow, or the last.

    Args:
        shape: Shape of the model.
        method: Name of a learned method.
        size: Bytes of a weight.
        settings: Settings of the run.
        resources: Resources of the experiment.
        processes: Number of processes.
    """
    tokens, on_gpu = settings.micro_batch_size * settings.seqlen, resources.device == "cuda"
    can_shard = processes > 1 and method not in ("proxsparse", "maskpro")
    can_offload = method in ("maskllm", "patch-joint")

    def choices(chosen: str | bool, possible: bool) -> list[bool]:
        if chosen == "auto":
            return [False, True] if on_gpu and possible else [False]
        return [bool(chosen) and possible]

    for offload, shard_weights in product(
        choices(resources.offload, can_offload), choices(resources.shard_weights, can_shard)
    ):
        checkpointed, where = settings.gradient_checkpointing, (resources.device, processes, shard_weights, offload)
        found = Placement(learning_mb(shape, method, size, tokens, checkpointed, *where), shard_weights, offload)
        if GPU_SLACK * found.mb <= 1000 * resources.memory_gb:
            break
    return found


def host_copy_seconds(shape: Shape, method: str, settings: Learning, resources: Resources, processes: int) -> float:
    """Return the seconds in which a step of an offloaded run copies between each GPU and the host's memory.

    A micro-batch stores the gradients, and loads them before if it is not the first one. The optimizer loads gradients
    and moments, and stores the moments; clipping loads the gradients once more.
    """
    micro_batches = math.ceil(len(settings.micro_batches()) / processes)
    copies = 2 * micro_batches - 1 + 5 + (settings.max_grad_norm is not None)
    gb = 4 * copies * learned_parameters(shape, method) / processes / 1e9
    return gb / GPUS[resources.gpu].host_gb_s


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
