"""Lower bounds of times on GPUs, from data sheets: packed products, generation, and a step of mask learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.ahead_of_time import ARCHITECTURES, TILE, Architecture, Kernel, Resources
from patch.inference.packed import packed_bytes
from patch.masks.tile import tile_grid
from patch.models.shapes import Shape, linear_shapes, prunable_parameters
from patch.pipeline.config.gpus import GPUS

# Time from a load to its data under load, in seconds: the bytes that must be in flight follow from it (Little's law).
LATENCY = 8e-7
# Simple instructions to place a weight in a dense or a sparse tile, beside the products.
INSTRUCTIONS_PER_WEIGHT = 4
HALF = 2


@dataclass(frozen=True)
class Card:
    """A GPU, from NVIDIA's data sheets (A100 80 GB SXM, H100 SXM, H200 SXM, RTX A6000).

    Attributes:
        name: key of `patch.pipeline.config.gpus.GPUS`, which has the throughput of its tensor cores.
        architecture: limits of a multiprocessor.
        processors: number of multiprocessors.
        bandwidth: bandwidth of the memory in bytes per second.
        clock: boost clock in Hz; each multiprocessor has 128 lanes, but the A100's 64.
        lanes: instructions of a multiprocessor in a cycle.
    """

    name: str
    architecture: Architecture
    processors: int
    bandwidth: float
    clock: float
    lanes: int = 128

    @property
    def flops(self) -> float:
        """Peak throughput of dense bf16 products in FLOP/s."""
        return GPUS[self.name].peak_tflops * 1e12


_BY_CAPABILITY = {architecture.capability: architecture for architecture in ARCHITECTURES}
CARDS = [
    Card("A100", _BY_CAPABILITY[80], 108, 2.039e12, 1.41e9, 64),
    Card("A6000", _BY_CAPABILITY[86], 84, 0.768e12, 1.80e9),
    Card("H100", _BY_CAPABILITY[90], 132, 3.35e12, 1.98e9),
    Card("H200", _BY_CAPABILITY[90], 132, 4.80e12, 1.98e9),
]


def weight_bytes(shape: tuple[int, int], sparsity: float) -> int:
    """Return the bytes of a packed bf16 weight with tiles of 128, whose fraction of zeros is ``sparsity``."""
    tiles = math.prod(tile_grid(shape, TILE))
    return packed_bytes(shape, TILE, round(tiles * (1 - 2 * sparsity)), HALF)


def product_limit(card: Card, shape: tuple[int, int], rows: int, sparsity: float | None = None) -> float:
    """Return the least time of a product in seconds; ``sparsity`` None is the dense weight.

    Sparse tiles are expanded before they are multiplied, so they save bytes and no products.
    """
    out, columns = shape
    weight = HALF * out * columns if sparsity is None else weight_bytes(shape, sparsity)
    moved = weight + HALF * rows * (out + columns)
    return max(moved / card.bandwidth, 2 * rows * out * columns / card.flops)


def product_estimate(
    card: Card, kernel: Kernel, resources: Resources, shape: tuple[int, int], rows: int, splits: int, sparsity: float
) -> float:
    """Return the estimated time of the packed product in one configuration, in seconds.

    It is the largest of the times to read, to expand and to multiply, if programs fill the multiprocessors; a last wave
    of programs that does not fill them takes as long as a full one. The bandwidth is reached only with enough bytes in
    flight.
    """
    out, columns = shape
    constants = kernel.constants
    height, high, depth = constants["ROWS"], constants["HIGH"], constants["DEPTH"]
    blocks = math.ceil(rows / height)
    programs = blocks * math.ceil(out / high) * splits
    resident = resources.blocks * card.processors
    if not resident:
        return math.inf
    stage = high * depth * weight_bytes(shape, sparsity) / (out * columns) + height * depth * HALF
    in_flight = min(resident, programs) * (kernel.stages - 1) * stage
    reached = card.bandwidth * min(1.0, in_flight / (LATENCY * card.bandwidth))
    moved = weight_bytes(shape, sparsity) + HALF * rows * (out + columns) + 4 * (splits > 1) * 2 * splits * rows * out
    multiplied = 2 * blocks * height * out * columns / card.flops
    expanded = blocks * out * columns * INSTRUCTIONS_PER_WEIGHT / (card.processors * card.lanes * card.clock)
    waves = programs / resident
    idle = math.ceil(waves) / waves if waves > 1 else 1.0
    return max(moved / reached, idle * max(multiplied, expanded))


def generation_speedup(card: Card, shape: Shape, batch: int, tokens: int, sparsity: float) -> float:
    """Return the largest possible speedup of one step of generation, with ``tokens`` in each sequence's cache.

    The output layer and the cache are the same in both models. Everything is limited by the memory's bandwidth.
    """
    dense = sum(HALF * rows * columns for rows, columns in linear_shapes(shape).values()) * shape.num_hidden_layers
    packed = sum(weight_bytes(sides, sparsity) for sides in linear_shapes(shape).values()) * shape.num_hidden_layers
    cache = 2 * HALF * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * batch * tokens
    rest = HALF * shape.vocab_size * shape.hidden_size + cache
    return (dense + rest) / (packed + rest)


# Bytes that each part of a step moves for each prunable weight, in bf16: six fp32 logits for four weights are 6 bytes.
MASK, PRODUCT = {"joint": 6 + 2 + 2, "tile": 1 / 8 + 2 + 2}, 2
GRADIENT = {"joint": 2 + 6 + 2 + 2 + 2 + 6, "tile": 2 + 1 / 8 + 2 + 2 + 2}
OPTIMIZER = {"joint": 7 * 6, "tile": 0}


def step_limit(card: Card, shape: Shape, method: str, tokens: int) -> Mapping[str, float]:
    """Return the least seconds of the parts of a learning step of one micro-batch, with recomputed blocks.

    The masks are made in the forward pass and again when a block is recomputed. In the backward pass one kernel makes
    them a third time, from the gradient of the masked weight, and writes the gradient of the logits. The optimizer
    reads logits, gradients and two moments, and writes all but the gradients.
    """
    weights = prunable_parameters(shape)
    seconds = 1 / card.bandwidth
    products = 8 * weights * tokens + 4 * shape.vocab_size * shape.hidden_size * tokens
    return {
        "masks": 2 * MASK[method] * weights * seconds,
        "gradients": GRADIENT[method] * weights * seconds,
        "optimizer": OPTIMIZER[method] * weights * seconds,
        "products": max(products / card.flops, 4 * PRODUCT * weights * seconds),
    }
