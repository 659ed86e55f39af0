"""GPU kernel of ProxSparse's proximal operator. With TRITON_INTERPRET=1 it runs on a CPU too, for tests."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patch.masks.kernels.triton_groups import load_four, store_four

# Number of groups of four weights of a program, and of its warps.
GROUPS, WARPS = 128, 4


@triton.jit
def _positive(value):  # noqa: ANN001, ANN202
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _sweep(w0, w1, w2, w3, z0, z1, z2, z3, strength):  # noqa: ANN001, ANN202
    """Minimise over each of the four weights in turn."""
    pair, reach = w2 * w3 * strength, (w2 + w3) * strength
    w0 = _positive(z0 - (w1 * reach + pair))
    w1 = _positive(z1 - (w0 * reach + pair))
    pair, reach = w0 * w1 * strength, (w0 + w1) * strength
    w2 = _positive(z2 - (w3 * reach + pair))
    w3 = _positive(z3 - (w2 * reach + pair))
    return w0, w1, w2, w3


@triton.jit
def _triples(a, b, c, d):  # noqa: ANN001, ANN202
    return a * b * (c + d) + c * d * (a + b)


@triton.jit
def _objective(w0, w1, w2, w3, z0, z1, z2, z3, strength):  # noqa: ANN001, ANN202
    d0, d1, d2, d3 = w0 - z0, w1 - z1, w2 - z2, w3 - z3
    return (d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3) / 2 + strength * _triples(w0, w1, w2, w3)


@triton.jit
def _select(chosen, x0, x1, x2, x3, y0, y1, y2, y3):  # noqa: ANN001, ANN202
    """Return the first four values for the chosen groups, and the others for the rest."""
    return tl.where(chosen, x0, y0), tl.where(chosen, x1, y1), tl.where(chosen, x2, y2), tl.where(chosen, x3, y3)


@triton.jit
def _ranked(rank, r0, r1, r2, x0, x1, x2, x3):  # noqa: ANN001, ANN202
    """Return the value that has a rank among four."""
    return tl.where(r0 == rank, x0, tl.where(r1 == rank, x1, tl.where(r2 == rank, x2, x3)))


@triton.jit
def _at(index, x0, x1, x2, x3):  # noqa: ANN001, ANN202
    """Return the value at a place among four."""
    return tl.where(index == 0, x0, tl.where(index == 1, x1, tl.where(index == 2, x2, x3)))


@triton.jit
def _grow(
    z0, z1, z2, z3, strength, GROWTH: tl.constexpr, REPEATS: tl.constexpr, SWEEPS: tl.constexpr, STILL: tl.constexpr
):  # noqa: ANN001, ANN202
    """Follow the minimum while a group in descending order grows from zero; see `patch.masks.proximal._grow`."""
    nothing = tl.zeros_like(z0)
    w0, w1, w2, w3 = nothing, nothing, nothing, nothing
    for step in range(1, GROWTH):
        part = step / GROWTH
        w0, w1, w2, w3 = _sweep(w0, w1, w2, w3, z0 * part, z1 * part, z2 * part, z3 * part, strength)
    # A group stops by its own change, so that its result does not depend on the others.
    moving, repeat = z0 == z0, 0
    while (repeat < REPEATS) & (tl.max(moving.to(tl.int32), 0) > 0):
        b0, b1, b2, b3 = w0, w1, w2, w3
        for _ in range(SWEEPS - 1):
            b0, b1, b2, b3 = _sweep(b0, b1, b2, b3, z0, z1, z2, z3, strength)
        a0, a1, a2, a3 = _sweep(b0, b1, b2, b3, z0, z1, z2, z3, strength)
        w0, w1, w2, w3 = _select(moving, a0, a1, a2, a3, w0, w1, w2, w3)
        change = tl.maximum(tl.maximum(tl.abs(a0 - b0), tl.abs(a1 - b1)), tl.maximum(tl.abs(a2 - b2), tl.abs(a3 - b3)))
        moving = moving & (change > STILL * z0)
        repeat += 1
    return w0, w1, w2, w3


@triton.jit
def _better(best, b0, b1, b2, b3, w0, w1, w2, w3, z0, z1, z2, z3, strength):  # noqa: ANN001, ANN202
    """Return the better of two points, the first of equal ones, and its objective."""
    found = _objective(w0, w1, w2, w3, z0, z1, z2, z3, strength)
    b0, b1, b2, b3 = _select(found < best, w0, w1, w2, w3, b0, b1, b2, b3)
    return tl.minimum(best, found), b0, b1, b2, b3


@triton.jit
def _choose(
    x0, x1, x2, x3, chosen, strength, LARGEST: tl.constexpr, GROWTH: tl.constexpr, REPEATS: tl.constexpr,
    SWEEPS: tl.constexpr, STILL: tl.constexpr,
):  # noqa: ANN001, ANN202  # fmt: skip
    """Return the best of the minima with two, three and four weights of the chosen groups."""
    # Descending order, in which the later of equal weights comes first.
    r0 = (x1 >= x0).to(tl.int32) + (x2 >= x0).to(tl.int32) + (x3 >= x0).to(tl.int32)
    r1 = (x0 > x1).to(tl.int32) + (x2 >= x1).to(tl.int32) + (x3 >= x1).to(tl.int32)
    r2 = (x0 > x2).to(tl.int32) + (x1 > x2).to(tl.int32) + (x3 >= x2).to(tl.int32)
    r3 = (x0 > x3).to(tl.int32) + (x1 > x3).to(tl.int32) + (x2 > x3).to(tl.int32)
    z0, z1 = _ranked(0, r0, r1, r2, x0, x1, x2, x3), _ranked(1, r0, r1, r2, x0, x1, x2, x3)
    z2, z3 = _ranked(2, r0, r1, r2, x0, x1, x2, x3), _ranked(3, r0, r1, r2, x0, x1, x2, x3)
    nothing = tl.zeros_like(z0)
    b0, b1, b2, b3 = z0, z1, nothing, nothing
    # In the other groups two weights stay; as zeros they end the search at once.
    open = chosen & (z0 * strength <= LARGEST)
    if tl.max(open.to(tl.int32), 0) > 0:
        z0, z1, z2, z3 = _select(open, z0, z1, z2, z3, nothing, nothing, nothing, nothing)
        t0, t1, t2, t3 = _grow(z0, z1, z2, nothing, strength, GROWTH, REPEATS, SWEEPS, STILL)
        f0, f1, f2, f3 = _grow(z0, z1, z2, z3, strength, GROWTH, REPEATS, SWEEPS, STILL)
        c0, c1, c2, c3 = z0, z1, nothing, nothing
        best = _objective(c0, c1, c2, c3, z0, z1, z2, z3, strength)
        best, c0, c1, c2, c3 = _better(best, c0, c1, c2, c3, t0, t1, t2, t3, z0, z1, z2, z3, strength)
        best, c0, c1, c2, c3 = _better(best, c0, c1, c2, c3, f0, f1, f2, f3, z0, z1, z2, z3, strength)
        b0, b1, b2, b3 = _select(open, c0, c1, c2, c3, b0, b1, b2, b3)
    return _at(r0, b0, b1, b2, b3), _at(r1, b0, b1, b2, b3), _at(r2, b0, b1, b2, b3), _at(r3, b0, b1, b2, b3)


@triton.jit
def _signed(value, source):  # noqa: ANN001, ANN202
    return tl.where(source < 0, -value, value)


@triton.jit
def _shrink(
    weight,
    result,
    penalties,
    sparse,
    count,
    strength,
    SMALL: tl.constexpr,
    SMALL_SWEEPS: tl.constexpr,
    CONVEX: tl.constexpr,
    CONVEX_SWEEPS: tl.constexpr,
    LARGEST: tl.constexpr,
    GROWTH: tl.constexpr,
    REPEATS: tl.constexpr,
    SWEEPS: tl.constexpr,
    STILL: tl.constexpr,
    SIZE: tl.constexpr,
):  # noqa: ANN001, ANN202
    index = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = index < count
    x0, x1, x2, x3 = load_four(weight, index, inside)
    z0, z1, z2, z3 = tl.abs(x0), tl.abs(x1), tl.abs(x2), tl.abs(x3)
    w0, w1, w2, w3 = z0, z1, z2, z3
    for _ in range(SMALL_SWEEPS):
        w0, w1, w2, w3 = _sweep(w0, w1, w2, w3, z0, z1, z2, z3, strength)
    largest = tl.maximum(tl.maximum(z0, z1), tl.maximum(z2, z3)) * strength
    # A group with NaN is in neither.
    whole = (x0 == x0) & (x1 == x1) & (x2 == x2) & (x3 == x3)
    some, many = whole & (largest > SMALL) & (largest <= CONVEX), whole & (largest > CONVEX)
    if tl.max(some.to(tl.int32), 0) > 0:
        c0, c1, c2, c3 = z0, z1, z2, z3
        for _ in range(CONVEX_SWEEPS):
            c0, c1, c2, c3 = _sweep(c0, c1, c2, c3, z0, z1, z2, z3, strength)
        w0, w1, w2, w3 = _select(some, c0, c1, c2, c3, w0, w1, w2, w3)
    if tl.max(many.to(tl.int32), 0) > 0:
        c0, c1, c2, c3 = _choose(z0, z1, z2, z3, many, strength, LARGEST, GROWTH, REPEATS, SWEEPS, STILL)
        w0, w1, w2, w3 = _select(many, c0, c1, c2, c3, w0, w1, w2, w3)
    w0, w1, w2, w3 = _signed(w0, x0), _signed(w1, x1), _signed(w2, x2), _signed(w3, x3)
    store_four(result, index, inside, w0, w1, w2, w3)
    # Statistics of the weights as they are stored.
    kind = result.dtype.element_ty
    s0, s1 = tl.abs(w0.to(kind).to(tl.float32)), tl.abs(w1.to(kind).to(tl.float32))
    s2, s3 = tl.abs(w2.to(kind).to(tl.float32)), tl.abs(w3.to(kind).to(tl.float32))
    kept = (s0 != 0).to(tl.int32) + (s1 != 0).to(tl.int32) + (s2 != 0).to(tl.int32) + (s3 != 0).to(tl.int32)
    tl.store(penalties + tl.program_id(0), tl.sum(_triples(s0, s1, s2, s3), 0))
    tl.store(sparse + tl.program_id(0), tl.sum((inside & (kept <= 2)).to(tl.int32), 0))


def shrink(weight: Tensor, strength: float, result: Tensor, constants: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Write the minimum for each group into ``result``, without waiting for the GPU.

    Args:
        weight: `[out, in]`, contiguous.
        strength: lambda.
        result: of the same shape and type, contiguous; may be ``weight``.
        constants: the thresholds and numbers of sweeps of `patch.masks.proximal`.

    Returns:
        The sum of the result's `triple_products`, fp64, and its number of 2:4 groups, int64.
    """
    count = weight.numel() // 4
    programs = triton.cdiv(count, GROUPS)
    penalties = torch.empty(programs, device=weight.device)
    sparse = torch.empty(programs, dtype=torch.int32, device=weight.device)
    # Without fused multiply-adds the bits are those of a CPU.
    options = {"SIZE": GROUPS, "num_warps": WARPS, "enable_fp_fusion": False}
    _shrink[(programs,)](weight, result, penalties, sparse, count, strength, **constants, **options)
    return penalties.sum(dtype=torch.float64), sparse.sum()
