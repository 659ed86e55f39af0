"""Tests of a masked layer and its gradients against float64 autograd with the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patch.masks import linear as linear_module
from patch.masks.kernels import compiled, eager
from patch.masks.learnable import LearnableMask, Sampling, begin_pass

SIX = [(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1)]
COUNTERS = (0, 3, 1, 2)
TILES = 0x7469
MODES = ["joint", "tile", "2:4"]
# Temperature and scale of the patterns, and of the tiles.
TEMPERATURES = {
    "first": (4.0, 100.0, 2.0, 25.0),
    "middle": (1.0, 300.0, 0.7, 150.0),
    "last": (0.05, 500.0, 0.05, 350.0),
}


@pytest.fixture(params=["compiled", "eager"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the kernel module of this test."""
    module = {"compiled": compiled, "eager": eager}[request.param]
    if module is compiled:
        try:
            compiled.load()
        except compiled.NoCompiler as error:
            pytest.skip(str(error))
    monkeypatch.setattr(linear_module, "kernel_for", lambda device, dtype: module)
    return module


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that sets the block size."""
    return lambda weights: monkeypatch.setattr(linear_module, "block_size", lambda device, learned: weights)


def uniform(count: int, counters: tuple[int, ...]) -> np.ndarray:
    """Return the noise of a layer in float64, computed independently of the package."""
    first, second = np.random.SeedSequence((len(counters), *counters)).generate_state(2, np.uint32)
    bits = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9) + first
    bits = (bits ^ bits >> 16) * np.uint32(0x7FEB352D)
    bits = (bits ^ bits >> 15) * np.uint32(0x846CA68B)
    bits = (bits ^ bits >> 16) + second
    bits = (bits ^ bits >> 16) * np.uint32(0x21F0AAAD)
    return ((bits >> 9).astype(np.float64) + 0.5) / 2**23


def gumbel(shape: tuple[int, ...], counters: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(-np.log(-np.log(uniform(math.prod(shape), counters)))).view(shape)


def logistic(shape: tuple[int, ...], counters: tuple[int, ...]) -> Tensor:
    noise = uniform(math.prod(shape), (*counters, TILES))
    return torch.from_numpy(np.log(noise) - np.log1p(-noise)).view(shape)


@dataclass
class Case:
    """Layer with everything that its output depends on."""

    weight: Tensor
    inputs: Tensor
    bias: Tensor | None
    logits: Tensor | None
    frozen: Tensor | None
    tiles: Tensor | None
    tile: int | None
    pattern: Sampling
    tile_sampling: Sampling
    counters: tuple[int, ...] = COUNTERS

    def mask(self) -> LearnableMask:
        copies = [None if part is None else part.clone() for part in (self.logits, self.frozen, self.tiles)]
        mask = LearnableMask(self.weight.shape, *copies, self.tile)
        begin_pass([mask], self.pattern, self.tile_sampling, [self.counters])
        return mask


def make(
    mode: str,
    temperature: str = "first",
    hard: bool = False,
    shape: tuple[int, int] = (8, 24),
    tile: int = 4,
    batch: tuple[int, ...] = (5,),
    bias: bool = True,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    tau, kappa, tau_tile, kappa_tile = TEMPERATURES[temperature]
    choice = torch.randint(0, 6, (rows * columns // 4,), generator=generator)
    grid = (-(-rows // tile), -(-columns // tile))
    # Logits that the noise brings near to each other, so that choices are undecided at any temperature: all tiles,
    # and half of the groups. A single tile is sparse rather than dense, for then it has patterns.
    spread = torch.randn(6, len(choice), generator=generator)
    undecided = 2 * tau * spread - gumbel(spread.shape, COUNTERS)
    logits = torch.where(torch.rand(len(choice), generator=generator) < 0.5, spread, undecided) / kappa
    spread = torch.randn(grid, generator=generator)
    tiles = (2 * tau_tile * (spread if spread.numel() > 1 else -spread.abs()) - logistic(grid, COUNTERS)) / kappa_tile
    return Case(
        weight=torch.randn(shape, generator=generator),
        inputs=torch.randn(*batch, columns, generator=generator),
        bias=torch.randn(rows, generator=generator) if bias else None,
        logits=logits.float() if mode != "tile" else None,
        frozen=torch.tensor(SIX)[choice].reshape(shape).bool() if mode == "tile" else None,
        tiles=tiles.float() if mode != "2:4" else None,
        tile=tile if mode != "2:4" else None,
        pattern=Sampling(kappa, tau, hard),
        tile_sampling=Sampling(kappa_tile, tau_tile, hard),
    )


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    return soft + (hard - soft).detach()


@dataclass
class Plain:
    """Reference computation of a case in float64, with its leaf tensors."""

    inputs: Tensor
    logits: Tensor | None
    tiles: Tensor | None
    mask: Tensor
    output: Tensor
    norm: Tensor


def plain(case: Case) -> Plain:
    shape = rows, columns = case.weight.shape
    inputs, logits, tiles = case.inputs.double().requires_grad_(), None, None
    if case.logits is None:
        mask = case.frozen.double()
    else:
        logits = case.logits.double().requires_grad_()
        scores = case.pattern.scale * logits + gumbel(logits.shape, case.counters)
        chances = torch.softmax(scores / case.pattern.temperature, 0)
        if case.pattern.hard:
            one_hot = torch.nn.functional.one_hot(chances.argmax(0), 6).T.double()
            chances = straight_through(chances, one_hot)
        mask = torch.einsum("kg,kj->gj", chances, torch.tensor(SIX).double()).reshape(shape)
    if case.tiles is not None:
        tiles = case.tiles.double().requires_grad_()
        score = case.tile_sampling.scale * tiles + logistic(tiles.shape, case.counters)
        density = torch.sigmoid(score / case.tile_sampling.temperature)
        if case.tile_sampling.hard:
            density = straight_through(density, (density > 0.5).double())
        one_tile = torch.ones(min(rows, case.tile), min(columns, case.tile), dtype=torch.float64)
        dense = torch.kron(density, one_tile)
        mask = dense + (1 - dense) * mask
    masked = mask * case.weight.double()
    output = torch.einsum("...i,oi->...o", inputs, masked)
    if case.bias is not None:
        output = output + case.bias.double()
    return Plain(inputs, logits, tiles, mask, output, masked.square().sum())


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = float(expected.detach().abs().max())
    assert scale > 0, "the case tests nothing"
    torch.testing.assert_close(actual.double(), expected.detach(), rtol=0, atol=tolerance * scale)


def loss_of(output: Tensor, norm: Tensor, used: str) -> Tensor:
    """Return a scalar that depends on the output, the kept norm, or both."""
    outer = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    through_output, through_norm = (output * outer.to(output.dtype)).sum(), 0.3 * norm
    return {"output": through_output, "norm": through_norm, "both": through_output - through_norm}[used]


def check(case: Case, used: str = "both", tolerance: float = 1e-4, rounding: float = 2e-6) -> None:
    """Compare values and all gradients; ``rounding`` is the tolerance of the output."""
    expected = plain(case)
    loss_of(expected.output, expected.norm, used).backward()
    mask, inputs = case.mask(), case.inputs.clone().requires_grad_()
    output = mask.linear(inputs, case.weight, case.bias)
    assert output.shape == expected.output.shape and output.dtype == case.weight.dtype
    assert mask.kept_norm.shape == () and mask.kept_norm.dtype == torch.float32
    exact = min(tolerance, 1e-4)
    close(output, expected.output, max(exact, rounding))
    close(mask.kept_norm, expected.norm, exact)
    # A soft group of four sums to two, so the density depends on the tiles alone; the mean of the full mask must agree.
    close(mask.density(), expected.mask.mean(), 1e-6)
    loss_of(output, mask.kept_norm, used).backward()
    if used == "norm":
        assert not inputs.grad.any()
    else:
        close(inputs.grad, expected.inputs.grad, max(exact, rounding))
    for leaf, parameter in ((expected.logits, mask.pattern_logits), (expected.tiles, mask.tile_logits)):
        assert (leaf is None) == (parameter is None)
        if leaf is not None:
            close(parameter.grad, leaf.grad, tolerance)
            assert parameter.grad.dtype == torch.float32 and parameter.grad.shape == parameter.shape


@pytest.mark.parametrize("used", ["output", "norm", "both"])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients(
    mode: str, temperature: str, hard: bool, used: str, kernel: ModuleType, block: Callable
) -> None:
    block(72)  # three rows of eight
    check(make(mode, temperature, hard), used, tolerance=1e-3 if temperature == "last" else 1e-4)


SHAPES = [
    # rows, columns, tile, weights at a time
    (1, 4, 4, 1),
    (1, 4, 2**20, 2**18),
    (1, 68, 2**20, 100),
    (4, 4, 4, 8),
    (12, 12, 4, 36),
    (12, 20, 4, 100),
    (20, 12, 4, 1),
    (20, 40, 20, 121),
    (24, 24, 12, 120),
    (8, 36, 4, 108),
    (12, 44, 2**20, 44 * 5),
    (8, 60, 4, 2**18),
    (16, 64, 8, 64 * 3),
    (16, 68, 4, 68 * 3),
    (24, 132, 12, 132 * 7),
    (132, 132, 132, 132 * 50),
    (36, 144, 36, 144 * 24),
    (144, 36, 12, 36 * 31),
    (48, 96, 2**20, 96 * 47),
    (7, 28, 28, 28 * 2),
]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rows", "columns", "tile", "weights"), SHAPES)
def test_shapes_tiles_and_blocks(
    rows: int, columns: int, tile: int, weights: int, mode: str, hard: bool, kernel: ModuleType, block: Callable
) -> None:
    """The cases have widths that fill no vector, odd numbers of groups, and tiles and blocks that overlap."""
    block(weights)
    check(make(mode, "middle" if rows > 1 else "first", hard, (rows, columns), tile, seed=rows + columns))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [(), (1,), (7,), (2, 3), (2, 1, 3)])
def test_inputs_of_any_dimension(batch: tuple[int, ...], bias: bool, kernel: ModuleType, block: Callable) -> None:
    block(48)
    check(make("joint", batch=batch, bias=bias))


@pytest.mark.parametrize("mode", MODES)
def test_inputs_and_gradients_that_are_not_contiguous(mode: str, kernel: ModuleType, block: Callable) -> None:
    block(48)
    case = make(mode, batch=(3, 4))
    case.inputs = case.inputs.transpose(0, 1)
    assert not case.inputs.is_contiguous()
    check(case)
    expected, mask, inputs = plain(case), case.mask(), case.inputs.clone().requires_grad_()
    # The gradient of a sum is one expanded number.
    expected.output.sum().backward()
    mask.linear(inputs, case.weight, case.bias).sum().backward()
    close(inputs.grad, expected.inputs.grad, 1e-5)
    for leaf, parameter in ((expected.logits, mask.pattern_logits), (expected.tiles, mask.tile_logits)):
        if leaf is not None:
            close(parameter.grad, leaf.grad, 1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_inputs_without_a_gradient(mode: str, kernel: ModuleType) -> None:
    case = make(mode)
    expected, mask = plain(case), case.mask()
    loss_of(expected.output, expected.norm, "both").backward()
    output = mask.linear(case.inputs, case.weight, case.bias)
    loss_of(output, mask.kept_norm, "both").backward()
    assert case.inputs.grad is None
    for leaf, parameter in ((expected.logits, mask.pattern_logits), (expected.tiles, mask.tile_logits)):
        if leaf is not None:
            close(parameter.grad, leaf.grad, 1e-4)


def test_logits_without_a_gradient(kernel: ModuleType) -> None:
    case = make("joint")
    expected, mask, inputs = plain(case), case.mask(), case.inputs.clone().requires_grad_()
    mask.requires_grad_(False)
    begin_pass([mask], case.pattern, case.tile_sampling, [case.counters])
    expected.output.sum().backward()
    mask.linear(inputs, case.weight, case.bias).sum().backward()
    close(inputs.grad, expected.inputs.grad, 1e-5)
    assert mask.pattern_logits.grad is None and mask.tile_logits.grad is None
    with torch.no_grad():
        assert not mask.linear(inputs, case.weight, case.bias).requires_grad


@pytest.mark.parametrize("used", ["output", "norm", "both"])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(8, 24), (12, 68)])
def test_bfloat16_weights(
    shape: tuple[int, int], mode: str, hard: bool, used: str, kernel: ModuleType, block: Callable
) -> None:
    """Logits, norm and what depends on them alone stay fp32; products are rounded to eight bits."""
    block(5 * shape[1])
    case = make(mode, "first", hard, shape)
    case.weight, case.inputs, case.bias = case.weight.bfloat16(), case.inputs.bfloat16(), case.bias.bfloat16()
    check(case, used, tolerance=1e-4 if used == "norm" else 2e-2, rounding=2e-2)


@pytest.mark.parametrize("hard", [False, True])
def test_finite_at_the_lowest_temperature_with_decided_logits(hard: bool, kernel: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    patterns, tiles = torch.randn(6, 64, generator=generator) * 5, torch.randn(4, 4, generator=generator) * 5
    mask = LearnableMask(torch.Size((16, 16)), patterns, None, tiles, 4)
    begin_pass([mask], Sampling(500.0, 0.05, hard), Sampling(500.0, 0.05, hard), [(1,)])
    weight = torch.randn(16, 16, generator=generator) * 100
    # With the identity as input, the outputs are the masked weights.
    masked = mask.linear(torch.eye(16), weight, None).T
    (masked.square().sum() - 10 * mask.kept_norm + mask.density()).backward()
    for value in (masked, mask.kept_norm, mask.density(), mask.pattern_logits.grad, mask.tile_logits.grad):
        assert value.isfinite().all()
    dense = torch.kron(mask.tile_logits.detach() > 0, torch.ones(4, 4)).bool()
    torch.testing.assert_close(masked.detach(), weight * (mask.final_pattern() | dense))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_hidden(value: float, kernel: ModuleType) -> None:
    case = make("joint")
    case.weight[2, 5] = value
    mask = case.mask()
    assert not mask.linear(case.inputs, case.weight, None)[:, 2].isfinite().any()
    assert not mask.kept_norm.isfinite()


def test_hard_masks_are_binary_and_two_of_four(kernel: ModuleType) -> None:
    mask = LearnableMask(torch.Size((8, 8)), torch.zeros(6, 16), None, torch.zeros(2, 2), 4)
    begin_pass([mask], Sampling(1.0, 4.0, True), Sampling(1.0, 2.0, True), [(3,)])
    values = mask.linear(torch.eye(8), torch.ones(8, 8), None).T.detach()
    assert set(values.unique().tolist()) <= {0.0, 1.0}
    kept = values.reshape(8, 2, 4).sum(-1)
    dense = mask.tile_density.detach().bool().repeat_interleave(4, 0)
    assert torch.equal(kept, torch.where(dense, 4.0, 2.0))
    assert mask.density().item() == pytest.approx(values.mean().item())


def test_weights_are_neither_changed_nor_given_a_gradient(kernel: ModuleType) -> None:
    case = make("joint")
    weight, inputs = case.weight.clone().requires_grad_(), case.inputs.clone()
    mask = case.mask()
    (mask.linear(inputs, weight, case.bias).sum() + mask.kept_norm).backward()
    assert torch.equal(weight, case.weight) and weight.grad is None
    assert torch.equal(inputs, case.inputs)


def two_passes(mode: str, hard: bool, keep: bool) -> tuple[list[list[Tensor]], list[Any]]:
    """Return the gradients after each of two passes with other noise and inputs, and their addresses."""
    cases = [make(mode, "first", hard, seed=1), make(mode, "first", hard, seed=1)]
    cases[1].inputs = torch.randn(9, cases[1].inputs.shape[-1], generator=torch.Generator().manual_seed(8))
    mask = cases[0].mask()
    gradients, where = [], []
    for step, case in enumerate(cases):
        begin_pass([mask], case.pattern, case.tile_sampling, [(*COUNTERS, step)])
        output = mask.linear(case.inputs, case.weight, case.bias)
        loss_of(output, mask.kept_norm, "both").backward()
        gradients.append([parameter.grad.clone() for parameter in mask.parameters()])
        where.append([parameter.grad.data_ptr() for parameter in mask.parameters()])
        if not keep:
            mask.zero_grad(set_to_none=True)
    return gradients, where


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_accumulate_in_place(mode: str, hard: bool, kernel: ModuleType, block: Callable) -> None:
    block(72)
    single, _ = two_passes(mode, hard, keep=False)
    (first, both), where = two_passes(mode, hard, keep=True)
    assert where[0] == where[1]
    for one, other, alone, total in zip(*single, first, both, strict=True):
        assert torch.equal(one, alone) and not torch.equal(one, other)
        torch.testing.assert_close(total, one + other, rtol=1e-6, atol=1e-6 * float(one.abs().max()))


def test_one_graph_twice(kernel: ModuleType) -> None:
    """Use a layer twice in one pass, and run a second backward pass through a retained graph."""
    case = make("joint")
    expected, mask = plain(case), case.mask()
    loss_of(expected.output, expected.norm, "both").backward()
    loss = loss_of(mask.linear(case.inputs, case.weight, case.bias), mask.kept_norm, "both")
    (loss + loss_of(mask.linear(case.inputs, case.weight, case.bias), mask.kept_norm, "both")).backward(
        retain_graph=True
    )
    close(mask.pattern_logits.grad, 2 * expected.logits.grad, 1e-4)
    close(mask.tile_logits.grad, 2 * expected.tiles.grad, 1e-4)
    loss.backward()
    close(mask.pattern_logits.grad, 3 * expected.logits.grad, 1e-4)
    close(mask.tile_logits.grad, 3 * expected.tiles.grad, 1e-4)


def test_same_counters_same_mask_other_counters_other_mask(kernel: ModuleType) -> None:
    mask = LearnableMask(torch.Size((8, 8)), torch.zeros(6, 16), None, torch.zeros(2, 2), 4)
    outputs = []
    for counters in ((1, 2, 3, 4), (1, 2, 3, 4), (2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5)):
        begin_pass([mask], Sampling(1.0, 1.0), Sampling(1.0, 1.0), [counters])
        outputs.append((mask.linear(torch.eye(8), torch.ones(8, 8), None).detach(), mask.tile_density.detach()))
    (first, first_density), (again, again_density), *others = outputs
    assert torch.equal(first, again) and torch.equal(first_density, again_density)
    for other, other_density in others:
        assert not (other == first).any() and not (other_density == first_density).any()


def test_without_tiles_the_density_is_one_half(kernel: ModuleType) -> None:
    mask = LearnableMask(torch.Size((4, 4)), torch.zeros(6, 4), None, None, None)
    begin_pass([mask], Sampling(1.0, 1.0), Sampling(1.0, 1.0), [(0,)])
    assert mask.density() == 0.5
    assert mask.linear(torch.eye(4), torch.ones(4, 4), None).mean().item() == pytest.approx(0.5)


def test_final_pattern_is_the_likeliest_or_the_frozen_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 6, generator=generator)
    final = LearnableMask(torch.Size((2, 12)), logits.clone(), None, None, None).final_pattern()
    expected = [SIX[max(range(6), key=lambda k, g=g: logits[k, g].item())] for g in range(6)]
    assert final.int().reshape(6, 4).tolist() == [list(pattern) for pattern in expected]
    frozen = torch.tensor([[1, 0, 1, 0]]).bool()
    assert torch.equal(LearnableMask(torch.Size((1, 4)), None, frozen, None, None).final_pattern(), frozen)


WIDTH, BATCH = 128, 2


class Memory(TorchDispatchMode):
    """Counter of the bytes of live tensors and of their peak."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {
            tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)
        }
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known:
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, self.alive())
        return result

    def alive(self) -> int:
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        return sum(size for _, size in self._alive.values())


def deep(mode: str, layers: int) -> tuple[list[LearnableMask], list[Tensor], Tensor]:
    cases = [make(mode, shape=(WIDTH, WIDTH), tile=32, batch=(BATCH,), seed=seed) for seed in range(layers)]
    return [case.mask() for case in cases], [case.weight for case in cases], cases[0].inputs


def loss_of_all(masks: list[LearnableMask], weights: list[Tensor], values: Tensor) -> Tensor:
    for mask, weight in zip(masks, weights, strict=True):
        begin_pass([mask], Sampling(1.0, 1.0), Sampling(1.0, 1.0), [COUNTERS])
        values = mask.linear(values, weight, None)
    return values.sum() - torch.stack([mask.kept_norm for mask in masks]).sum()


@pytest.mark.parametrize("mode", MODES)
def test_between_the_passes_only_inputs_are_alive(mode: str, kernel: ModuleType) -> None:
    def measure(layers: int) -> int:
        model = deep(mode, layers)
        with Memory() as memory:
            loss = loss_of_all(*model)
            alive = memory.alive()
            loss.backward()
        return alive

    weight, inputs, tiles = 4 * WIDTH**2, 4 * WIDTH * BATCH, 4 * (WIDTH // 32) ** 2
    assert weight > 20 * (inputs + 8 * tiles)
    assert inputs <= (measure(12) - measure(2)) / 10 <= inputs + 8 * tiles


@pytest.mark.parametrize("mode", MODES)
def test_a_pass_needs_room_for_some_rows(mode: str, kernel: ModuleType, block: Callable) -> None:
    """The peak memory of a pass does not grow with the layers and rows, beyond the gradients."""
    block(8 * WIDTH)

    def measure(layers: int) -> int:
        model = deep(mode, layers)
        loss_of_all(*model).backward()
        with Memory() as memory:
            loss_of_all(*model).backward()
        return memory.most

    few, many = measure(2), measure(5)
    assert many - few <= 3 * (4 * WIDTH * BATCH + 1024)
    assert few < 4 * WIDTH**2, "less than one weight"


@pytest.mark.parametrize("mode", MODES)
def test_no_full_size_tensor_is_saved(mode: str, kernel: ModuleType) -> None:
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    model = deep(mode, 3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of_all(*model).backward()
    assert saved and max(saved) <= WIDTH * BATCH


def test_the_measure_sees_what_is_kept() -> None:
    with Memory() as memory:
        kept = [torch.zeros(1000).add_(1) for _ in range(5)]
        assert memory.alive() == 5 * 4000
        del kept
        assert memory.alive() == 0
    assert memory.most == 5 * 4000
