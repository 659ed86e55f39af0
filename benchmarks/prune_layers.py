"""Benchmark of one-shot pruning of one decoder block's layers against the published formulations.

    python benchmarks/prune_layers.py [--scale 4] [--methods thanos] [--patterns 2:4] [--threads 2] [--device cuda]

The layers have the shapes of Llama-2-7B, divided by ``--scale``. Layers of one shape cost the same, so one layer of
each shape is measured, and a block's total multiplies it by the number of such layers. Both sides prune the same
weights with the same statistics in fp32, in turn, and the fastest turn of each counts. Memory is the peak of a call
beside the memory before, its results included. The exit code is 1 if ours is slower or the masks differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import published_pruning as published  # noqa: E402
from benchmarks.measure import Cost, measure, table  # noqa: E402
from patch.calibration.input_statistics import InputStatistics  # noqa: E402
from patch.masks.nm import Pattern, parse_pattern  # noqa: E402
from patch.pruning.hessian import inverse_factor  # noqa: E402
from patch.pruning.magnitude import magnitude  # noqa: E402
from patch.pruning.sparsegpt import sparsegpt  # noqa: E402
from patch.pruning.thanos import thanos  # noqa: E402
from patch.pruning.wanda import wanda  # noqa: E402

SPARSITY = 0.5
# Methods that share the factor of the inverse Hessian between layers of one input.
SHARING = {"sparsegpt", "thanos"}
# Least fraction of equal mask entries: rounding may change a choice between equal scores, and the choices after it.
LEAST_EQUAL = 0.99
HEADERS = ("method", "pattern", "layers", "s: ours", "published", "ratio", "MB: ours", "published", "equal")

Prune = Callable[[Tensor, InputStatistics, Pattern], tuple[Tensor, Tensor]]
# The input statistics of a layer, and the seconds to make its factor of the inverse Hessian.
Inputs = tuple[InputStatistics, float]


def _masked(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return mask, weight.masked_fill(mask.logical_not(), 0)


METHODS: dict[str, tuple[Prune, Prune]] = {
    "magnitude": (lambda w, _, p: _masked(w, magnitude(w, p)), lambda w, _, p: published.magnitude(w, p)),
    "wanda": (lambda w, s, p: _masked(w, wanda(w, s, p)), published.wanda),
    # Copied statistics, since the same object would hit the factor cache of another turn.
    "sparsegpt": (lambda w, s, p: sparsegpt(w, replace(s), p), published.sparsegpt),
    "thanos": (lambda w, s, p: thanos(w, replace(s), p), published.thanos),
}


class Shape(NamedTuple):
    """Layers of a block with one shape, and how many factors of an inverse Hessian they need if these are shared."""

    names: tuple[str, ...]
    rows: int
    inputs: int
    factors: int

    def __str__(self) -> str:
        return f"{','.join(self.names)} {self.rows}x{self.inputs}"


def statistics_of(inputs: int, rows: int, device: str) -> InputStatistics:
    """Return statistics of ``rows`` random tokens with correlated inputs of different scales, two of them zero."""
    generator = torch.Generator(device).manual_seed(inputs)
    random = partial(torch.randn, generator=generator, device=device)
    scale = (0.5 * random(inputs)).exp()
    scale[:2] = 0
    latent = max(1, inputs // 16)
    mixing = random(latent, inputs) / latent**0.5
    gram = torch.zeros(inputs, inputs, device=device)
    for start in range(0, rows, 2048):
        tokens = min(2048, rows - start)
        x = (random(tokens, latent) @ mixing + 0.5 * random(tokens, inputs)) * scale
        gram.addmm_(x.T, x)
    return InputStatistics(gram.diagonal().clone(), gram, max(1, rows // 2048))


def compare(method: str, pattern: Pattern, weight: Tensor, statistics: InputStatistics, turns: int) -> list[Cost]:
    """Run ours and the published method in turn, and return the cost of the fastest turn of each; results are masks."""
    sides: list[list[Cost]] = [[], []]
    for _ in range(turns):
        for side, prune in zip(sides, METHODS[method], strict=True):
            side.append(measure(lambda prune=prune: prune(weight, statistics, pattern)[0], weight.is_cuda))
    return [min(side, key=lambda cost: cost.seconds) for side in sides]


def with_factor_seconds(statistics: InputStatistics, turns: int) -> Inputs:
    """Return statistics, and the fewest seconds for their factor of the inverse Hessian."""
    cuda = statistics.squares.is_cuda
    calls = (measure(lambda: inverse_factor(statistics, 0.01, "thanos"), cuda) for _ in range(turns))
    return statistics, min(call.seconds for call in calls)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"hidden": 4096, "intermediate": 11008, "scale": 1, "samples-rows": 16384, "turns": 3}
    for name, default in (sizes | {"threads": torch.get_num_threads()}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--patterns", nargs="+", default=["2:4", "unstructured"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="the same as --scale 16")
    options = parser.parse_args()
    if options.quick:
        options.scale = 16
    return options


def block(method: str, pattern: Pattern, shapes: list[Shape], inputs: dict[int, Inputs], turns: int) -> bool:
    """Print a method's layers and totals; return False if ours is slower or the masks differ."""
    ours, theirs, saved, good, lines = 0.0, 0.0, 0.0, True, []
    for shape in shapes:
        statistics, factor_seconds = inputs[shape.inputs]
        weight = torch.randn(shape.rows, shape.inputs, device=statistics.squares.device)
        first, second = compare(method, pattern, weight, statistics, turns)
        ratio, same = first.seconds / second.seconds, float((first.result == second.result).float().mean())
        good &= ratio <= 1 and same >= LEAST_EQUAL
        times = f"{first.seconds:.3f}", f"{second.seconds:.3f}", f"{ratio:.2f}"
        memory = f"{first.megabytes:.0f}", f"{second.megabytes:.0f}"
        lines.append([method, pattern, shape, *times, *memory, f"{same:.5f}"])
        ours += len(shape.names) * first.seconds
        theirs += len(shape.names) * second.seconds
        saved += (len(shape.names) - shape.factors) * factor_seconds
    totals = {"the block": ours} | ({"  with factors shared": ours - saved} if method in SHARING else {})
    for name, total in totals.items():
        lines.append([method, pattern, name, f"{total:.3f}", f"{theirs:.3f}", f"{total / theirs:.2f}", "", "", ""])
    print("\n" + table(HEADERS, lines), flush=True)
    return good


@torch.no_grad()
def main() -> int:
    """Run the command line and return the exit code."""
    options = arguments()
    torch.set_num_threads(options.threads)
    hidden, intermediate = options.hidden // options.scale, options.intermediate // options.scale
    shapes = [
        Shape(("q", "k", "v", "o"), hidden, hidden, 2),
        Shape(("gate", "up"), intermediate, hidden, 1),
        Shape(("down",), hidden, intermediate, 1),
    ]
    tokens = options.samples_rows // options.scale
    print(f"{options.device}, {options.threads} threads, torch {torch.__version__}, statistics of {tokens} tokens")
    statistics = {n: statistics_of(n, tokens, options.device) for n in (hidden, intermediate)}
    inputs = {n: with_factor_seconds(s, options.turns) for n, s in statistics.items()}
    patterns = [parse_pattern(name, SPARSITY) for name in options.patterns]
    good = [block(m, p, shapes, inputs, options.turns) for m in options.methods for p in patterns]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
