"""Benchmark of ProxSparse's proximal operator against the published formulation, on one matrix.

    python benchmarks/proximal.py                              # weights as in a language model, minutes
    python benchmarks/proximal.py --scale 0.8 --strength 1     # large thresholds and several minima

The reference follows the paper and its public code: groups as sorted rows of four; candidates with three and four
weights by alternating soft thresholds from zero, column by column, for at most 100 iterations or until the sum of all
changes in the matrix is below 1e-8; the minimum of three objectives. Both sides have the same fp32 matrix and number of
threads, and run in turn; results are medians over runs.

Memory is the peak of the process during a run beside its memory before, from Linux's /proc. Objectives are computed in
float64 from both results.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import measure, paired_ratio, table  # noqa: E402
from patch.masks.nm import groups  # noqa: E402
from patch.masks.proximal import proximal_two_four, triple_products  # noqa: E402


def published(weight: Tensor, strength: float) -> Tensor:
    """Return the result of the published operator, `[out, in]` fp32."""
    rows = groups(weight, 4).flatten(0, 1)
    z, order = rows.abs().sort(dim=1, descending=True)
    pair = z.clone()
    pair[:, 2:] = 0
    candidates = [pair, _alternate(z, strength, 3), _alternate(z, strength, 4)]
    objectives = torch.stack([_objective(w, z, strength) for w in candidates])
    chosen = objectives.argmin(0)[:, None]
    best = torch.where(chosen == 0, candidates[0], torch.where(chosen == 1, candidates[1], candidates[2]))
    return torch.empty_like(best).scatter_(1, order, best).mul_(rows.sign()).view_as(weight)


def _alternate(z: Tensor, strength: float, count: int) -> Tensor:
    """Apply soft thresholds to the first ``count`` columns in turn from zero, the smallest column first."""
    w = torch.zeros_like(z)
    for _ in range(100):
        before = w.clone()
        for i in reversed(range(count)):
            a, b, *rest = (w[:, j] for j in range(count) if j != i)
            products = a * b + sum((a + b) * c for c in rest)
            w[:, i] = (z[:, i] - strength * products).clamp(min=0)
        if (w - before).abs().sum() < 1e-8:
            break
    return w


def _objective(w: Tensor, z: Tensor, strength: float) -> Tensor:
    return (w - z).square().sum(1) / 2 + strength * triple_products(w)[:, 0]


def objectives(result: Tensor, weight: Tensor, strength: float) -> Tensor:
    """Return the objective of each group, `[out * in / 4]` float64."""
    parts = []
    for w, z in zip(groups(result, 4).split(64), groups(weight, 4).split(64), strict=True):
        w, z = w.double(), z.double()
        a, b, c, d = w.abs().unbind(-1)
        triples = a * b * (c + d) + c * d * (a + b)
        parts.append(((w - z).square().sum(-1) / 2 + strength * triples).flatten())
    return torch.cat(parts)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4096, help="rows of the matrix (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=4096, help="columns of the matrix (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=0.02, help="standard deviation (default: %(default)s)")
    parser.add_argument("--strength", type=float, default=0.25, help="lambda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of both sides (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: %(default)s)")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    weight = arguments.scale * torch.randn(arguments.rows, arguments.columns, generator=generator)
    sides = {"ours": proximal_two_four, "published": published}
    for operator in sides.values():
        operator(weight[:16], arguments.strength)
    times: dict[str, list[float]] = {name: [] for name in sides}
    memory: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, operator in sides.items():
            cost = measure(partial(operator, weight, arguments.strength))
            times[name].append(cost.seconds)
            memory[name].append(cost.megabytes)
    lines = []
    for name in sides:
        seconds = statistics.median(times[name])
        cells = [f"{seconds:.3f}", f"{4e9 * seconds / weight.numel():.1f}", f"{statistics.median(memory[name]):.0f}"]
        lines.append([name, *cells])
    print(table(("operator", "seconds", "ns per group", "peak MB"), lines))
    ratios = [paired_ratio(costs["published"], costs["ours"]) for costs in (times, memory)]
    print(f"published / ours: {ratios[0]:.1f} x the time, {ratios[1]:.1f} x the memory")

    ours, theirs = (objectives(side(weight, arguments.strength), weight, arguments.strength) for side in sides.values())
    excess = theirs - ours
    missed = (excess > 1e-6 * theirs).double().mean().item()
    print(
        f"largest objective above the other's: ours {(-excess).max().item():.1e}, published {excess.max().item():.1e}"
    )
    print(f"groups where the published result is worse by more than a millionth: {missed:.4%}")


if __name__ == "__main__":
    main()
