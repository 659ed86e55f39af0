"""ProxSparse's regularizer, which is zero where a group of four is 2:4, and its proximal operator.

The published solver runs up to a hundred alternating sweeps on every group, twice. This one distinguishes groups by
their largest weight times the strength. Where that is small, as nearly everywhere in a language model, there is one
minimum and a few sweeps suffice; where it is large, two weights stay; in between, the candidates are compared. The
number of sweeps of a group depends on the group alone, so its result does not depend on its neighbours.
"""

from __future__ import annotations

import ctypes
import math
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from patch import native
from patch.errors import InputError
from patch.masks.nm import NM, groups, obeys

# Largest weight times strength, and the sweeps that suffice for all bits of fp32 but the last. Up to 1/6 the matrix of
# second derivatives is diagonally dominant between zero and the group itself, where all minima lie: there is one.
SMALL, SMALL_SWEEPS = 1 / 32, 5
CONVEX, CONVEX_SWEEPS = 1 / 6, 12
# For the two largest weights times the strength, a and b: four weights are a minimum only where a + b <= 1, and three
# are better than two only where a^2 + b^2 <= 1. The largest of such a group, a + the products, is 5/4 at most.
LARGEST = 1.25
# In between: GROWTH steps to the full size of a group, then up to REPEATS times SWEEPS sweeps while it still changes.
GROWTH, REPEATS, SWEEPS, STILL = 8, 25, 8, 1e-7
# Groups that plain PyTorch computes at a time: as many as fit a core's cache, and as many as keep a GPU busy.
CHUNK, GPU_CHUNK = 1 << 16, 1 << 22
SOURCE = Path(__file__).parent / "kernels/proximal.cpp"
_CONSTANTS = {
    **{"SMALL": SMALL, "SMALL_SWEEPS": SMALL_SWEEPS, "CONVEX": CONVEX, "CONVEX_SWEEPS": CONVEX_SWEEPS},
    **{"LARGEST": LARGEST, "GROWTH": GROWTH, "REPEATS": REPEATS, "SWEEPS": SWEEPS, "STILL": STILL},
}
# Without fused multiply-adds the compiled operator gives the bits of the one in plain PyTorch.
FLAGS = ("-march=native", "-ffp-contract=off", *(f"-D{name}={value}" for name, value in _CONSTANTS.items()))


@torch.no_grad()
def proximal_two_four(weight: Tensor, strength: float) -> Tensor:
    """Return the w that minimises `1/2 ||w - weight||^2 + strength * R(w)`, R being the sum of `triple_products`.

    It is the global minimum up to fp32, as far as searches found, also in groups where the published alternation
    from zero ends in a worse one. Of equal minima the sparser is returned; of equal weights of which only one can
    stay, the later stays. NaN spreads within its group.

    Args:
        weight: `[out, in]`, any float type and strides.
        strength: lambda; if it is above 1.25 over a group's largest weight, exactly the two largest stay.

    Returns:
        `[out, in]`, new and contiguous, of the same type; computed in fp32.

    Raises:
        InputError: 4 does not divide `in`, or the strength is negative or not finite.

    Source: ProxSparse (arXiv 2502.00258) but for how the minimum is found.
    """
    return _shrunk(weight, strength, _empty(weight))[0]


@torch.no_grad()
def shrink_two_four_(weight: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Replace a weight by the result of `proximal_two_four`.

    Returns:
        The sum of the result's `triple_products`, fp64, and its number of 2:4 groups, int64, on the weight's device.

    Raises:
        InputError: as `proximal_two_four`.
    """
    result, penalty, sparse = _shrunk(weight, strength, weight if weight.is_contiguous() else _empty(weight))
    if result is not weight:
        weight.copy_(result)
    return penalty, sparse


def _empty(weight: Tensor) -> Tensor:
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def _shrunk(weight: Tensor, strength: float, result: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Write the minimum into a contiguous tensor, which may be ``weight``.

    Returns:
        The tensor, and what `shrink_two_four_` returns.
    """
    if not 0 <= strength < math.inf:
        raise InputError(f"the strength of the proximal operator is {strength}; use a finite one of at least 0")
    count = groups(weight, 4).shape[1] * weight.shape[0]
    if weight.is_cpu and weight.dtype == torch.float32 and _kernel():
        source, sparse = weight.contiguous(), ctypes.c_int64()
        penalty = _kernel().proximal_two_four(
            source.data_ptr(), result.data_ptr(), count, strength, torch.get_num_threads(), ctypes.byref(sparse)
        )
        return result, torch.tensor(penalty, dtype=torch.float64), torch.tensor(sparse.value)
    if weight.is_cuda and (gpu := _gpu_kernel()):
        return result, *gpu.shrink(weight.contiguous(), strength, result, _CONSTANTS)
    _shrink_eager(weight, strength, result)
    return result, triple_products(result).sum(dtype=torch.float64), obeys(result != 0, NM(2, 4)).sum()


def _warn(error: Exception) -> None:
    warnings.warn(f"ProxSparse's operator runs in plain PyTorch, many times slower: {error}", stacklevel=3)


@cache
def _kernel() -> ctypes.CDLL | None:
    """Return the compiled operator, or None with a warning if there is no compiler."""
    try:
        library = native.library(SOURCE, FLAGS)
    except (native.NoCompiler, OSError) as error:
        _warn(error)
        return None
    pointer = ctypes.c_void_p
    library.proximal_two_four.argtypes = [pointer, pointer, ctypes.c_int64, ctypes.c_float, ctypes.c_int32, pointer]
    library.proximal_two_four.restype = ctypes.c_double
    return library


@cache
def _gpu_kernel() -> ModuleType | None:
    """Return the operator for GPUs, or None with a warning if there is no Triton."""
    try:
        return import_module("patch.masks.kernels.proximal_triton")
    except ImportError as error:
        _warn(error)
        return None


def _shrink_eager(weight: Tensor, strength: float, result: Tensor) -> None:
    count = GPU_CHUNK if weight.is_cuda else CHUNK * torch.get_num_threads()
    rows = max(1, 4 * count // max(1, weight.shape[1]))
    for part, done in zip(weight.split(rows), result.split(rows), strict=True):
        group = groups(part, 4).flatten(0, 1).float()
        # `[4, groups]`, so that every operation runs along contiguous memory.
        size = torch.abs(group.T, out=group.new_empty(4, len(group)))
        groups(done, 4).copy_(torch.copysign(_shrink(size, strength).T, group).view(len(part), -1, 4))


def triple_products(weight: Tensor) -> Tensor:
    """Return the regularizer's terms: for each group of four, the sum of the four products of three absolute values.

    Args:
        weight: `[out, in]`, any float type.

    Returns:
        `[out, in / 4]` fp32; zero where at most two weights are not zero.

    Raises:
        InputError: 4 does not divide `in`.
    """
    return _triples(*groups(weight, 4).float().abs().unbind(-1))


def _triples(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return a * b * (c + d) + c * d * (a + b)


def _shrink(size: Tensor, strength: float) -> Tensor:
    """Return the minimum for `[4, n]` fp32 absolute values."""
    largest = size.amax(0) * strength
    result = _sweep(size.clone(), size, strength, SMALL_SWEEPS)
    # A group with NaN is in neither.
    found = (largest > SMALL) & (largest <= CONVEX), largest > CONVEX
    # The host waits for a GPU once to read both numbers of groups, which are mostly zero.
    counts = torch.stack([part.sum() for part in found]).tolist()
    some, many = (part.nonzero_static(size=count)[:, 0] for part, count in zip(found, counts, strict=True))
    if len(some):
        part = size[:, some]
        result[:, some] = _sweep(part.clone(), part, strength, CONVEX_SWEEPS)
    if len(many):
        result[:, many] = _choose(size[:, many], strength)
    return result


def _sweep(w: Tensor, z: Tensor, strength: float, count: int) -> Tensor:
    """Minimise over each row of ``w`` in turn, in place, ``count`` times; both tensors are `[4, n]`."""
    w_rows, z_rows = w.unbind(), z.unbind()
    pair, reach, loss = torch.empty_like(z[:3]).unbind()
    for _ in range(count):
        for i, j, others in ((2, 3, ((0, 1), (1, 0))), (0, 1, ((2, 3), (3, 2)))):
            torch.mul(w_rows[i], w_rows[j], out=pair).mul_(strength)
            torch.add(w_rows[i], w_rows[j], out=reach).mul_(strength)
            for one, other in others:
                # No fused multiply-add: at the ends of rows, without vectors, it might round differently.
                torch.mul(w_rows[other], reach, out=loss).add_(pair)
                torch.sub(z_rows[one], loss, out=w_rows[one]).clamp_(min=0)
    return w


def _choose(size: Tensor, strength: float) -> Tensor:
    """Return the best of the minima with two, three and four weights, for `[4, n]`."""
    z, order = size.flip(0).sort(dim=0, descending=True, stable=True)
    best = torch.cat([z[:2], torch.zeros_like(z[2:])])
    left = (z[0] * strength <= LARGEST).nonzero()[:, 0]
    if len(left):
        z = z[:, left]
        three = torch.cat([z[:3], torch.zeros_like(z[3:])])
        grown = _grow(torch.cat([three, z], dim=1), strength).unflatten(1, (2, -1))
        found = torch.cat([best[:, None, left], grown], dim=1)
        a, b, c, d = (found - z[:, None]).square()
        objective = (a + b + c + d) / 2 + strength * _triples(*found)
        best[:, left] = found.gather(1, objective.argmin(0).expand(4, 1, -1))[:, 0]
    return torch.empty_like(best).scatter_(0, 3 - order, best)


def _grow(z: Tensor, strength: float) -> Tensor:
    """Return the local minimum that groups in descending order, `[4, n]`, keep while they grow from zero to ``z``.

    Close to zero there is one minimum. While it stays the only one it moves without a jump, so that a sweep for each
    step of growth follows it. Sweeps at the full size, from zero or from ``z``, may end in another minimum.
    """
    w = torch.zeros_like(z)
    for step in range(1, GROWTH):
        _sweep(w, z * (step / GROWTH), strength, 1)
    left = torch.arange(z.shape[1], device=z.device)
    for _ in range(REPEATS):
        target = z[:, left]
        before = _sweep(w[:, left], target, strength, SWEEPS - 1)
        w[:, left] = after = _sweep(before.clone(), target, strength, 1)
        left = left[(after - before).abs().amax(0) > STILL * target[0]]
        if not len(left):
            break
    return w
