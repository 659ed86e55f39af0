"""GPU kernels of the masks: one Triton kernel each way. With TRITON_INTERPRET=1 they run on a CPU too, for tests."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from patch.masks.kernels.eager import add_by_tile, unpack_bits
from patch.masks.kernels.layer import Layer
from patch.masks.noise import signed

# Number of groups of four weights of a program.
GROUPS = 256


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
def _four(values, index, inside):  # noqa: ANN001, ANN202
    """Load the numbers at each of the four places of the groups, as fp32."""
    return (
        tl.load(values + 4 * index, mask=inside, other=0).to(tl.float32),
        tl.load(values + 4 * index + 1, mask=inside, other=0).to(tl.float32),
        tl.load(values + 4 * index + 2, mask=inside, other=0).to(tl.float32),
        tl.load(values + 4 * index + 3, mask=inside, other=0).to(tl.float32),
    )


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
def _forward(
    weight,
    logits,
    pattern,
    tile_density,
    masked,
    probabilities,
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
    KEPT: tl.constexpr,
    SIZE: tl.constexpr,
):  # noqa: ANN001, ANN202, E501
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = index < count
    group = first_group + index
    own = group - logits_group
    if LEARNED:
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
        p0, p1, p2, p3, p4, p5 = p0 * total, p1 * total, p2 * total, p3 * total, p4 * total, p5 * total
        if KEPT:
            tl.store(probabilities + index, p0, mask=inside)
            tl.store(probabilities + count + index, p1, mask=inside)
            tl.store(probabilities + 2 * count + index, p2, mask=inside)
            tl.store(probabilities + 3 * count + index, p3, mask=inside)
            tl.store(probabilities + 4 * count + index, p4, mask=inside)
            tl.store(probabilities + 5 * count + index, p5, mask=inside)
        if HARD:
            p0, p1, p2, p3, p4, p5 = _hardened(p0, p1, p2, p3, p4, p5)
        m0, m1, m2, m3 = p0 + p1 + p2, p0 + p3 + p4, p1 + p3 + p5, p2 + p4 + p5
    else:
        m0, m1, m2, m3 = _four(pattern, index, inside)
    if TILED:
        dense = _density_of(tile_density, group, inside, groups, height, tile_groups, tile_columns)
        m0, m1 = dense + (1 - dense) * m0, dense + (1 - dense) * m1
        m2, m3 = dense + (1 - dense) * m2, dense + (1 - dense) * m3
    w0, w1, w2, w3 = _four(weight, index, inside)
    w0, w1, w2, w3 = w0 * m0, w1 * m1, w2 * m2, w3 * m3
    tl.store(masked + 4 * index, w0, mask=inside)
    tl.store(masked + 4 * index + 1, w1, mask=inside)
    tl.store(masked + 4 * index + 2, w2, mask=inside)
    tl.store(masked + 4 * index + 3, w3, mask=inside)
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
    probabilities,
    pattern,
    tile_density,
    out,
    by_group,
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
    factor,
    LEARNED: tl.constexpr,
    WANTED: tl.constexpr,
    TILED: tl.constexpr,
    HARD: tl.constexpr,
    ADD: tl.constexpr,
    SIZE: tl.constexpr,
):  # noqa: ANN001, ANN202, E501
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = index < count
    group = first_group + index
    if LEARNED:
        p0 = tl.load(probabilities + index, mask=inside, other=0.0)
        p1 = tl.load(probabilities + count + index, mask=inside, other=0.0)
        p2 = tl.load(probabilities + 2 * count + index, mask=inside, other=0.0)
        p3 = tl.load(probabilities + 3 * count + index, mask=inside, other=0.0)
        p4 = tl.load(probabilities + 4 * count + index, mask=inside, other=0.0)
        p5 = tl.load(probabilities + 5 * count + index, mask=inside, other=0.0)
        if HARD:
            c0, c1, c2, c3, c4, c5 = _hardened(p0, p1, p2, p3, p4, p5)
        else:
            c0, c1, c2, c3, c4, c5 = p0, p1, p2, p3, p4, p5
        m0, m1, m2, m3 = c0 + c1 + c2, c0 + c3 + c4, c1 + c3 + c5, c2 + c4 + c5
    else:
        m0, m1, m2, m3 = _four(pattern, index, inside)
    dense = tl.zeros([SIZE], tl.float32)
    if TILED:
        dense = _density_of(tile_density, group, inside, groups, height, tile_groups, tile_columns)
    w0, w1, w2, w3 = _four(weight, index, inside)
    g0, g1, g2, g3 = _four(gradient, index, inside)
    g0 = w0 * (g0 + 2 * norm_gradient * (dense + (1 - dense) * m0) * w0)
    g1 = w1 * (g1 + 2 * norm_gradient * (dense + (1 - dense) * m1) * w1)
    g2 = w2 * (g2 + 2 * norm_gradient * (dense + (1 - dense) * m2) * w2)
    g3 = w3 * (g3 + 2 * norm_gradient * (dense + (1 - dense) * m3) * w3)
    if TILED:
        term = g0 * (1 - m0) + g1 * (1 - m1) + g2 * (1 - m2) + g3 * (1 - m3)
        tl.store(by_group + index, term, mask=inside)
        g0, g1, g2, g3 = g0 * (1 - dense), g1 * (1 - dense), g2 * (1 - dense), g3 * (1 - dense)
    if WANTED:
        own = group - logits_group
        s0, s1, s2, s3, s4, s5 = g0 + g1, g0 + g2, g0 + g3, g1 + g2, g1 + g3, g2 + g3
        mean = s0 * p0 + s1 * p1 + s2 * p2 + s3 * p3 + s4 * p4 + s5 * p5
        _store_gradient(out + own, p0 * (s0 - mean) * factor, inside, ADD)
        _store_gradient(out + plane + own, p1 * (s1 - mean) * factor, inside, ADD)
        _store_gradient(out + 2 * plane + own, p2 * (s2 - mean) * factor, inside, ADD)
        _store_gradient(out + 3 * plane + own, p3 * (s3 - mean) * factor, inside, ADD)
        _store_gradient(out + 4 * plane + own, p4 * (s4 - mean) * factor, inside, ADD)
        _store_gradient(out + 5 * plane + own, p5 * (s5 - mean) * factor, inside, ADD)


def _sizes(layer: Layer, first: int, rows: int) -> tuple[int, ...]:
    groups = layer.weight.shape[1] // 4
    plane = 0 if layer.logits is None else layer.logits.shape[1]
    columns = 1 if layer.tile_density is None else layer.tile_density.shape[1]
    logit_sizes = plane, layer.first_row * groups, len(layer.weight) * groups
    return rows * groups, groups, first * groups, *logit_sizes, layer.tile[0], layer.tile[1] // 4, columns


def _frozen(layer: Layer, first: int, rows: int) -> Tensor | None:
    """Return the frozen pattern of some rows, a byte a weight."""
    columns = layer.weight.shape[1]
    return (
        None if layer.logits is not None else unpack_bits(layer.bits, first * columns, rows * columns).to(torch.uint8)
    )


def forward(layer: Layer, first: int, masked: Tensor, probabilities: Tensor | None) -> Tensor:
    """Make masked weights; see `patch.masks.kernels`."""
    sizes, sampling = _sizes(layer, first, len(masked)), layer.sampling
    programs = triton.cdiv(sizes[0], GROUPS)
    norms = torch.empty(programs, device=masked.device)
    # The kernel does not read the parts that a layer lacks.
    nothing = norms
    _forward[(programs,)](
        layer.weight[first : first + len(masked)],
        *(nothing if t is None else t for t in (layer.logits, _frozen(layer, first, len(masked)), layer.tile_density)),
        *(masked, nothing if probabilities is None else probabilities, norms),
        *(*sizes, sampling.scale, sampling.temperature, *map(signed, layer.keys)),
        LEARNED=layer.logits is not None,
        TILED=layer.tile_density is not None,
        HARD=sampling.hard,
        KEPT=probabilities is not None,
        SIZE=GROUPS,
    )
    return norms.sum(dtype=torch.float64)


def backward(
    layer: Layer,
    first: int,
    gradient: Tensor,
    probabilities: Tensor | None,
    norm_gradient: float,
    logits_gradient: Tensor | None,
    add: bool,
    density_gradient: Tensor | None,
) -> None:
    """Differentiate masked weights; see `patch.masks.kernels`."""
    rows = len(gradient)
    sizes, sampling = _sizes(layer, first, rows), layer.sampling
    by_group = torch.empty(sizes[0] if layer.tile_density is not None else 1, device=gradient.device)
    frozen = _frozen(layer, first, rows)
    _backward[(triton.cdiv(sizes[0], GROUPS),)](
        layer.weight[first : first + rows],
        gradient,
        *(by_group if t is None else t for t in (probabilities, frozen, layer.tile_density, logits_gradient)),
        *(by_group, norm_gradient, *sizes, sampling.scale / sampling.temperature),
        LEARNED=layer.logits is not None,
        WANTED=logits_gradient is not None,
        TILED=layer.tile_density is not None,
        HARD=sampling.hard,
        ADD=add,
        SIZE=GROUPS,
    )
    if layer.tile_density is not None:
        by_row = by_group.view(rows, -1, layer.tile[1] // 4).sum(2)
        add_by_tile(by_row, first, layer.tile[0], density_gradient)
