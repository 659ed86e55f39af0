"""GPU kernels of the masks: one Triton kernel each way. With TRITON_INTERPRET=1 they run on a CPU too, for tests."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from patch.masks.kernels.eager import add_by_tile
from patch.masks.kernels.layer import Layer
from patch.masks.kernels.triton_groups import load_four, store_four
from patch.masks.noise import signed

# Number of groups of four weights of a program, and of its warps.
GROUPS, WARPS = 256, 4


@triton.jit
def _mix(bits, key0, key1):  # noqa: ANN001, ANN202
    """Mix bits as `patch.masks.noise.mixed` does, with the same constants as int32; the keys are int32, too."""
    bits = (bits.to(tl.int32) * -1640531527 + key0).to(tl.uint32, bitcast=True)
    bits ^= bits >> 16
    bits = (bits.to(tl.int32, bitcast=True) * 0x7FEB352D).to(tl.uint32, bitcast=True)
    bits ^= bits >> 15
    bits = (bits.to(tl.int32, bitcast=True) * -2073254261).to(tl.uint32, bitcast=True)
    bits ^= bits >> 16
    bits = (bits.to(tl.int32, bitcast=True) + key1).to(tl.uint32, bitcast=True)
    bits ^= bits >> 16
    return (bits.to(tl.int32, bitcast=True) * 0x21F0AAAD).to(tl.uint32, bitcast=True)


@triton.jit
def _score(logits, index, place, inside, key0, key1, scale, temperature):  # noqa: ANN001, ANN202
    noise = ((_mix(place, key0, key1) >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-7
    gumbel = -tl.log(-tl.log(noise))
    return (tl.load(logits + index, mask=inside, other=0.0) * scale + gumbel) / temperature


@triton.jit
def _frozen(bits, group, inside):  # noqa: ANN001, ANN202
    """Load the frozen pattern of each group: four bits, the first group in the lower half of a byte."""
    kept = tl.load(bits + group // 2, mask=inside, other=0).to(tl.int32) >> (group % 2 * 4)
    return (
        (kept & 1).to(tl.float32),
        (kept >> 1 & 1).to(tl.float32),
        (kept >> 2 & 1).to(tl.float32),
        (kept >> 3 & 1).to(tl.float32),
    )


@triton.jit
def _softmax(logits, own, group, inside, plane, all_groups, key0, key1, scale, temperature):  # noqa: ANN001, ANN202
    """Compute the Gumbel-softmax of the six logits of each group."""
    p0 = _score(logits, own, group, inside, key0, key1, scale, temperature)
    p1 = _score(logits, own + plane, group + all_groups, inside, key0, key1, scale, temperature)
    p2 = _score(logits, own + 2 * plane, group + 2 * all_groups, inside, key0, key1, scale, temperature)
    p3 = _score(logits, own + 3 * plane, group + 3 * all_groups, inside, key0, key1, scale, temperature)
    p4 = _score(logits, own + 4 * plane, group + 4 * all_groups, inside, key0, key1, scale, temperature)
    p5 = _score(logits, own + 5 * plane, group + 5 * all_groups, inside, key0, key1, scale, temperature)
    top = tl.maximum(tl.maximum(tl.maximum(p0, p1), tl.maximum(p2, p3)), tl.maximum(p4, p5))
    p0, p1, p2 = tl.exp(p0 - top), tl.exp(p1 - top), tl.exp(p2 - top)
    p3, p4, p5 = tl.exp(p3 - top), tl.exp(p4 - top), tl.exp(p5 - top)
    total = 1.0 / (p0 + p1 + p2 + p3 + p4 + p5)
    return p0 * total, p1 * total, p2 * total, p3 * total, p4 * total, p5 * total


@triton.jit
def _density_of(tile_density, group, inside, groups, height, tile_groups, tile_columns):  # noqa: ANN001, ANN202
    """Load the dense fraction of the tile of each group."""
    tile = group // groups // height * tile_columns + group % groups // tile_groups
    return tl.load(tile_density + tile, mask=inside, other=0.0)


@triton.jit
def _hardened(p0, p1, p2, p3, p4, p5):  # noqa: ANN001, ANN202
    """Return one for the likeliest, the first among equals, and zero for the others."""
    top = tl.maximum(tl.maximum(tl.maximum(p0, p1), tl.maximum(p2, p3)), tl.maximum(p4, p5))
    c0 = p0 == top
    c1 = (p1 == top) & ~c0
    c2 = (p2 == top) & ~(c0 | c1)
    c3 = (p3 == top) & ~(c0 | c1 | c2)
    c4 = (p4 == top) & ~(c0 | c1 | c2 | c3)
    c5 = ~(c0 | c1 | c2 | c3 | c4)
    return (
        c0.to(tl.float32),
        c1.to(tl.float32),
        c2.to(tl.float32),
        c3.to(tl.float32),
        c4.to(tl.float32),
        c5.to(tl.float32),
    )


@triton.jit
def _pattern(p0, p1, p2, p3, p4, p5, HARD: tl.constexpr):  # noqa: ANN001, ANN202
    """Return the mask of each position in a group from the probabilities of the patterns."""
    if HARD:
        p0, p1, p2, p3, p4, p5 = _hardened(p0, p1, p2, p3, p4, p5)
    return p0 + p1 + p2, p0 + p3 + p4, p1 + p3 + p5, p2 + p4 + p5


@triton.jit
def _forward(
    weight,
    logits,
    bits,
    tile_density,
    masked,
    norms,
    count,
    groups,
    first_group,
    plane,
    logits_group,
    all_groups,
    height,
    tile_groups,
    tile_columns,
    scale,
    temperature,
    key0,
    key1,
    LEARNED: tl.constexpr,
    TILED: tl.constexpr,
    HARD: tl.constexpr,
    SIZE: tl.constexpr,
):  # noqa: ANN001, ANN202
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = index < count
    group = first_group + index
    if LEARNED:
        own = group - logits_group
        p0, p1, p2, p3, p4, p5 = _softmax(logits, own, group, inside, plane, all_groups, key0, key1, scale, temperature)
        m0, m1, m2, m3 = _pattern(p0, p1, p2, p3, p4, p5, HARD)
    else:
        m0, m1, m2, m3 = _frozen(bits, group, inside)
    if TILED:
        dense = _density_of(tile_density, group, inside, groups, height, tile_groups, tile_columns)
        m0, m1 = dense + (1 - dense) * m0, dense + (1 - dense) * m1
        m2, m3 = dense + (1 - dense) * m2, dense + (1 - dense) * m3
    w0, w1, w2, w3 = load_four(weight, index, inside)
    w0, w1, w2, w3 = w0 * m0, w1 * m1, w2 * m2, w3 * m3
    store_four(masked, index, inside, w0, w1, w2, w3)
    tl.store(norms + tl.program_id(0), tl.sum(w0 * w0 + w1 * w1 + w2 * w2 + w3 * w3))


@triton.jit
def _store_gradient(place, value, inside, ADD: tl.constexpr):  # noqa: ANN001, ANN202
    if ADD:
        value += tl.load(place, mask=inside, other=0.0)
    tl.store(place, value, mask=inside)


@triton.jit
def _backward(
    weight,
    gradient,
    logits,
    bits,
    tile_density,
    masked,
    logits_gradient,
    density_terms,
    norm_gradient,
    count,
    groups,
    first_group,
    plane,
    logits_group,
    all_groups,
    height,
    tile_groups,
    tile_columns,
    scale,
    temperature,
    key0,
    key1,
    LEARNED: tl.constexpr,
    TILED: tl.constexpr,
    HARD: tl.constexpr,
    WANTED: tl.constexpr,
    MASKED: tl.constexpr,
    ADD: tl.constexpr,
    PART: tl.constexpr,
    SIZE: tl.constexpr,
):  # noqa: ANN001, ANN202
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = index < count
    group = first_group + index
    own = group - logits_group
    if LEARNED:
        p0, p1, p2, p3, p4, p5 = _softmax(logits, own, group, inside, plane, all_groups, key0, key1, scale, temperature)
        m0, m1, m2, m3 = _pattern(p0, p1, p2, p3, p4, p5, HARD)
    else:
        m0, m1, m2, m3 = _frozen(bits, group, inside)
    dense = tl.zeros([SIZE], tl.float32)
    if TILED:
        dense = _density_of(tile_density, group, inside, groups, height, tile_groups, tile_columns)
    w0, w1, w2, w3 = load_four(weight, index, inside)
    k0, k1 = (dense + (1 - dense) * m0) * w0, (dense + (1 - dense) * m1) * w1
    k2, k3 = (dense + (1 - dense) * m2) * w2, (dense + (1 - dense) * m3) * w3
    if MASKED:
        store_four(masked, index, inside, k0, k1, k2, k3)
    factor = 2 * tl.load(norm_gradient)
    g0, g1, g2, g3 = load_four(gradient, index, inside)
    g0, g1 = w0 * (g0 + factor * k0), w1 * (g1 + factor * k1)
    g2, g3 = w2 * (g2 + factor * k2), w3 * (g3 + factor * k3)
    if TILED:
        term = g0 * (1 - m0) + g1 * (1 - m1) + g2 * (1 - m2) + g3 * (1 - m3)
        part = tl.program_id(0) * (SIZE // PART) + tl.arange(0, SIZE // PART)
        tl.store(density_terms + part, tl.sum(tl.reshape(term, (SIZE // PART, PART)), 1), mask=part * PART < count)
        g0, g1, g2, g3 = g0 * (1 - dense), g1 * (1 - dense), g2 * (1 - dense), g3 * (1 - dense)
    if WANTED:
        s0, s1, s2, s3, s4, s5 = g0 + g1, g0 + g2, g0 + g3, g1 + g2, g1 + g3, g2 + g3
        mean = s0 * p0 + s1 * p1 + s2 * p2 + s3 * p3 + s4 * p4 + s5 * p5
        slope = scale / temperature
        _store_gradient(logits_gradient + own, p0 * (s0 - mean) * slope, inside, ADD)
        _store_gradient(logits_gradient + plane + own, p1 * (s1 - mean) * slope, inside, ADD)
        _store_gradient(logits_gradient + 2 * plane + own, p2 * (s2 - mean) * slope, inside, ADD)
        _store_gradient(logits_gradient + 3 * plane + own, p3 * (s3 - mean) * slope, inside, ADD)
        _store_gradient(logits_gradient + 4 * plane + own, p4 * (s4 - mean) * slope, inside, ADD)
        _store_gradient(logits_gradient + 5 * plane + own, p5 * (s5 - mean) * slope, inside, ADD)


def _numbers(layer: Layer, first: int, rows: int) -> tuple[float, ...]:
    """Return the sizes, the sampling and the keys that both kernels take."""
    groups, sampling = layer.weight.shape[1] // 4, layer.sampling
    plane = 0 if layer.logits is None else layer.logits.shape[1]
    columns = 1 if layer.tile_density is None else layer.tile_density.shape[1]
    return (
        *(rows * groups, groups, first * groups, plane, layer.first_row * groups, len(layer.weight) * groups),
        *(layer.tile[0], layer.tile[1] // 4, columns),
        *(sampling.scale, sampling.temperature, *map(signed, layer.keys)),
    )


def forward(layer: Layer, first: int, masked: Tensor) -> Tensor:
    """Make masked weights; see `patch.masks.kernels`."""
    numbers = _numbers(layer, first, len(masked))
    programs = triton.cdiv(numbers[0], GROUPS)
    norms = torch.empty(programs, device=masked.device)
    # The kernel does not read the parts that a layer lacks.
    parts = (norms if part is None else part for part in (layer.logits, layer.bits, layer.tile_density))
    _forward[(programs,)](
        layer.weight[first : first + len(masked)],
        *parts,
        *(masked, norms, *numbers),
        LEARNED=layer.logits is not None,
        TILED=layer.tile_density is not None,
        HARD=layer.sampling.hard,
        SIZE=GROUPS,
        num_warps=WARPS,
    )
    return norms.sum(dtype=torch.float64)


def backward(
    layer: Layer,
    first: int,
    gradient: Tensor,
    masked: Tensor | None,
    norm_gradient: Tensor,
    logits_gradient: Tensor | None,
    add: bool,
    density_gradient: Tensor | None,
) -> None:
    """Differentiate masked weights; see `patch.masks.kernels`."""
    rows = len(gradient)
    numbers = _numbers(layer, first, rows)
    tiled = layer.tile_density is not None
    # A program sums its groups of one row and tile: as many at a time as divide both.
    summed = math.gcd(layer.tile[1] // 4, GROUPS) if tiled else GROUPS
    terms = torch.empty(numbers[0] // summed if tiled else 1, device=gradient.device)
    parts = (layer.logits, layer.bits, layer.tile_density, masked, logits_gradient)
    _backward[(triton.cdiv(numbers[0], GROUPS),)](
        *(layer.weight[first : first + rows], gradient, *(terms if part is None else part for part in parts)),
        *(terms, norm_gradient, *numbers),
        LEARNED=layer.logits is not None,
        TILED=tiled,
        HARD=layer.sampling.hard,
        WANTED=logits_gradient is not None,
        MASKED=masked is not None,
        ADD=add,
        PART=summed,
        SIZE=GROUPS,
        num_warps=WARPS,
    )
    if tiled:
        by_row = terms.view(rows, -1, layer.tile[1] // 4 // summed).sum(2)
        add_by_tile(by_row, first, layer.tile[0], density_gradient)
