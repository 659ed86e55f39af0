"""ProxSparse's proximal operator: this project's beside the published formulation, on one matrix.

    python benchmarks/proximal.py                              # weights as in a language model, minutes
    python benchmarks/proximal.py --scale 0.8 --strength 1     # where thresholds bite and minima are several

The published formulation is written out here as the paper and its public code describe it: groups as rows of four,
sorted; candidates with three and four weights by alternating soft thresholds from zero, column by column, for at most
100 rounds or until the sum of all changes in the matrix is below 1e-8; the least of three objectives. Both sides get
the same fp32 matrix and as many threads, and take turns; the median of the rounds counts.

Memory is what the process holds at most during a run above what it held before, its result included, from Linux's
/proc. Objectives are computed in float64 from both results.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
    """Apply soft thresholds of the first ``count`` columns in turn, from zero, the smallest first."""
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


def _held(field: str) -> float:
    """Return the memory of this process in MB, from Linux: `VmRSS` now, `VmHWM` at most."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def measured(operator: Callable[[Tensor, float], Tensor], weight: Tensor, strength: float) -> tuple[float, float]:
    """Return the seconds and MB of one run."""
    gc.collect()
    # Memory freed by earlier runs would hide this run's allocations.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _held("VmRSS"), time.perf_counter()
    operator(weight, strength)
    return time.perf_counter() - started, _held("VmHWM") - before


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4096, help="of the matrix (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=4096, help="of the matrix (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=0.02, help="standard deviation (default: %(default)s)")
    parser.add_argument("--strength", type=float, default=0.25, help="lambda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of both sides (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default: %(default)s)")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    weight = arguments.scale * torch.randn(arguments.rows, arguments.columns, generator=generator)
    sides = {"ours": proximal_two_four, "published": published}
    for operator in sides.values():
        operator(weight[:16], arguments.strength)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, operator in sides.items():
            runs[name].append(measured(operator, weight, arguments.strength))
    medians = {name: [statistics.median(values) for values in zip(*pairs, strict=True)] for name, pairs in runs.items()}
    for name, (seconds, memory) in medians.items():
        print(f"{name:10} {seconds:9.3f} s  {4e9 * seconds / weight.numel():8.1f} ns a group  {memory:7.0f} MB")
    ratios = [theirs / ours for theirs, ours in zip(medians["published"], medians["ours"], strict=True)]
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
