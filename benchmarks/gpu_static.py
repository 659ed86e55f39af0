"""Tables about the GPU kernels that need no GPU: resources of compiled kernels, and limits of times from data sheets.

    python -m benchmarks.gpu_static             # the tables of docs/performance.md; minutes the first time

It exits with 1 if a kernel spills registers or exceeds the shared memory of a block, or if a product does not use the
tensor cores and asynchronous copies.

Kernels are compiled ahead of time for each compute capability by Triton and NVIDIA's assembler, in each configuration
that autotuning may choose, for bf16 and tiles of 128. Times are estimates (benchmarks/roofline.py), never measurements.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence

from benchmarks.ahead_of_time import (
    ARCHITECTURES,
    TILE,
    Architecture,
    Kernel,
    compiled,
    faults,
    mask_kernels,
    product_kernels,
    proximal_kernel,
)
from benchmarks.gpu.page import PUBLISHED, THROUGHPUT
from benchmarks.gpu.sizes import full_sizes
from benchmarks.measure import table
from benchmarks.roofline import CARDS, Card, generation_speedup, product_estimate, product_limit, step_limit
from patch.inference.backends import fused

SIZES, SPARSITIES = full_sizes(), (0.25, 0.35, 0.45, 0.5)
LLAMA_1B, LLAMA_7B = SIZES.learned["1B"], SIZES.generated
BATCH, NEW = max(SIZES.batches), SIZES.new_tokens
# A configuration that is not within this fraction of the best one for any card, shape and number of rows cannot win.
MARGIN = 0.05
# Numbers of rows for which other configurations are tried, or other blocks of rows.
TRIED_ROWS = (1, 16, 32, 64, 128, 512, 2048)


def estimates(card: Card, shape: tuple[int, int], rows: int, sparsity: float) -> dict[Kernel, float]:
    """Return the estimated seconds of a product in each configuration that autotuning tries."""
    count, _ = fused.splits(shape, math.ceil(shape[1] / TILE), rows, card.processors)
    return {
        kernel: product_estimate(card, kernel, compiled(kernel, card.architecture), shape, rows, count, sparsity)
        for kernel in product_kernels(rows)
    }


def useful() -> set[str]:
    """Return the names of the configurations that are nearly the best for some card, shape and number of rows."""
    names = set()
    for card in CARDS:
        for shape in SIZES.layers:
            for rows in TRIED_ROWS:
                found = estimates(card, shape, rows, 0.45)
                best = min(found.values())
                names |= {kernel.name for kernel, seconds in found.items() if seconds <= (1 + MARGIN) * best}
    return names


def resources_table(kernels: Sequence[Kernel], architecture: Architecture) -> str:
    """Return the table of the resources of kernels on one architecture."""
    rows = []
    for kernel in kernels:
        found = compiled(kernel, architecture)
        numbers = found.registers, found.spilled, found.shared, f"{found.occupancy:.0%}", found.matrix
        rows.append([kernel.name, *map(str, numbers), str(found.asynchronous)])
    return table(["kernel", "registers", "spilled", "shared", "occupancy", "matrix", "copies of 16 B"], rows)


def products_table(card: Card) -> str:
    """Return the table of a card: least times in microseconds, and the speedups that the bytes allow."""
    rows = []
    for shape in SIZES.layers:
        for count in SIZES.rows:
            dense = product_limit(card, shape, count)
            limits = [dense / product_limit(card, shape, count, sparsity) for sparsity in SPARSITIES]
            best = [dense / min(estimates(card, shape, count, sparsity).values()) for sparsity in SPARSITIES]
            pairs = [f"{limit:.2f} ({reached:.2f})" for limit, reached in zip(limits, best, strict=True)]
            rows.append([f"{shape[0]} x {shape[1]}", str(count), f"{1e6 * dense:.1f}", *pairs])
    return table(["layer", "rows", "dense, us", *(f"{sparsity:.0%}" for sparsity in SPARSITIES)], rows)


def generation_table() -> str:
    """Return the largest possible speedups of generation beside the published ones."""
    published = json.loads(PUBLISHED.read_text())[THROUGHPUT]
    rows = []
    for card in CARDS:
        measured = published.get(card.name, {}).get(f"gen{NEW}")
        for sparsity in SPARSITIES:
            limit = generation_speedup(card, LLAMA_7B, BATCH, SIZES.prompt + NEW // 2, sparsity)
            tokens = measured.get(f"{sparsity:.0%}"[:-1]) if measured else None
            rows.append(
                [card.name, f"{sparsity:.0%}", f"{limit:.2f}", f"{tokens / measured['0']:.2f}" if tokens else ""]
            )
    return table(["card", "sparsity", "limit", "published"], rows)


def step_table() -> str:
    """Return the least milliseconds of the parts of a learning step of one micro-batch, with recomputed blocks."""
    rows = []
    for title, shape in (("Llama-3.2-1B", LLAMA_1B), ("Llama-2-7B", LLAMA_7B)):
        for method in ("joint", "tile"):
            for card in CARDS:
                parts = step_limit(card, shape, method, SIZES.seqlen)
                numbers = [f"{1000 * seconds:.0f}" for seconds in (*parts.values(), sum(parts.values()))]
                rows.append([f"{title}, {method}", card.name, *numbers])
    return table(["step", "card", *parts, "sum, ms"], rows)


def main() -> int:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    kernels = [*mask_kernels(), proximal_kernel()]
    kernels += dict.fromkeys(kernel for rows in TRIED_ROWS for kernel in product_kernels(rows))
    for architecture in ARCHITECTURES:
        print(f"\nCompute capability {architecture.capability / 10}\n")
        print(resources_table(kernels, architecture), flush=True)
    for card in CARDS:
        print(f"\n{card.name}: limit of the speedup by bytes and FLOP (estimate of the best configuration)\n")
        print(products_table(card))
    print(f"\nGeneration by LLaMA-2-7B, {BATCH} sequences, {NEW} new tokens: limit by bytes, and the paper's\n")
    print(generation_table())
    print(f"\nLeast milliseconds of a learning step, one sequence of {SIZES.seqlen} tokens\n")
    print(step_table())
    names = useful()
    print(
        "\nConfigurations that cannot win:", sorted({k.name for k in kernels if "product" in k.name} - names) or "none"
    )
    wrong = [
        f"{kernel.name} on compute capability {architecture.capability / 10} {fault}"
        for architecture in ARCHITECTURES
        for kernel in kernels
        for fault in faults(kernel, architecture)
    ]
    print("\nFaults:", *(wrong or ["none"]), sep="\n" if wrong else " ")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
