"""The masked weight and its gradients against float64 autograd of the plain formula, given the same noise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from patch.masks import learnable
from patch.masks.learnable import LearnableMask, Sampling

SIX = [(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1)]


@dataclass
class Case:
    """One layer with everything that its mask depends on."""

    weight: torch.Tensor
    logits: torch.Tensor | None
    frozen: torch.Tensor | None
    tiles: torch.Tensor | None
    tile: int | None
    pattern: Sampling
    tile_sampling: Sampling
    gumbel: torch.Tensor
    logistic: torch.Tensor | None

    def mask(self) -> LearnableMask:
        copies = [None if part is None else part.clone() for part in (self.logits, self.frozen, self.tiles)]
        return LearnableMask(self.weight.shape, *copies, self.tile)


TEMPERATURES = {
    "first": (4.0, 100.0, 2.0, 25.0),
    "middle": (1.0, 300.0, 0.7, 150.0),
    "last": (0.05, 500.0, 0.05, 350.0),
}


def make(
    mode: str, temperature: str, hard: bool, shape: tuple[int, int] = (8, 24), tile: int = 4, seed: int = 0
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    tau, kappa, tau_tile, kappa_tile = TEMPERATURES[temperature]
    # Logits small enough that even at the last step many choices are undecided.
    spread = 2 * tau / kappa + 1 / kappa
    frozen = torch.zeros(rows * columns // 4, 4)
    choice = torch.randint(0, 6, (len(frozen),), generator=generator)
    for group, index in enumerate(choice.tolist()):
        frozen[group] = torch.tensor(SIX[index])
    tiled = mode != "2:4"
    return Case(
        weight=torch.randn(shape, generator=generator),
        logits=torch.randn(6, rows * columns // 4, generator=generator) * spread if mode != "tile" else None,
        frozen=frozen.reshape(shape).bool() if mode == "tile" else None,
        tiles=torch.randn(rows // tile, columns // tile, generator=generator) / kappa_tile if tiled else None,
        tile=tile if tiled else None,
        pattern=Sampling(kappa, tau, hard),
        tile_sampling=Sampling(kappa_tile, tau_tile, hard),
        gumbel=torch.randn(6, rows * columns // 4, generator=generator) * max(tau, 0.1),
        logistic=torch.randn(rows // tile, columns // tile, generator=generator) * tau_tile if tiled else None,
    )


def straight_through(soft: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
    return soft + (hard - soft).detach()


def obvious(case: Case) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The full-size mask in float64, and its two leaves."""
    rows, columns = case.weight.shape
    logits = tiles = None
    if case.logits is not None:
        logits = case.logits.double().requires_grad_()
        groups = []
        for group in range(rows * columns // 4):
            scores = (case.pattern.scale * logits[:, group] + case.gumbel[:, group].double()) / case.pattern.temperature
            chances = scores.exp() / scores.exp().sum() if scores.abs().max() < 500 else torch.softmax(scores, 0)
            if case.pattern.hard:
                one_hot = torch.zeros(6, dtype=torch.float64)
                one_hot[int(chances.argmax())] = 1
                chances = straight_through(chances, one_hot)
            groups.append(sum(chances[k] * torch.tensor(SIX[k], dtype=torch.float64) for k in range(6)))
        pattern = torch.stack(groups).reshape(rows, columns)
    else:
        pattern = case.frozen.double()
    if case.tiles is None:
        return pattern, logits, None
    tiles = case.tiles.double().requires_grad_()
    second = torch.randn(tiles.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    first = second + case.logistic.double()
    kappa, tau = case.tile_sampling.scale, case.tile_sampling.temperature
    both = torch.stack([(kappa * tiles + first) / tau, second / tau])
    share = torch.softmax(both, 0)[0]
    if case.tile_sampling.hard:
        share = straight_through(share, (share > 0.5).double())
    full = torch.kron(share, torch.ones(case.tile, case.tile, dtype=torch.float64))
    return full + (1 - full) * pattern, logits, tiles


@pytest.fixture
def given_noise(monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201
    """A function that makes the module draw exactly the noise of a case."""

    def use(case: Case) -> None:
        monkeypatch.setattr(
            learnable, "gumbel_noise", lambda shape, seed, device="cpu": case.gumbel.reshape(shape).clone()
        )
        monkeypatch.setattr(
            learnable, "logistic_noise", lambda shape, seed, device="cpu": case.logistic.reshape(shape).clone()
        )

    return use


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    scale = float(expected.abs().max())
    assert scale > 0, "the case tests nothing"
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("mode", ["joint", "tile", "2:4"])
def test_forward_and_gradients(mode: str, temperature: str, hard: bool, given_noise) -> None:  # noqa: ANN001
    case = make(mode, temperature, hard)
    given_noise(case)
    full, logits, tiles = obvious(case)
    masked = full * case.weight.double()
    norm = masked.square().sum()
    outer = torch.randn(case.weight.shape, generator=torch.Generator().manual_seed(5))
    (masked * outer.double()).sum().sub(0.3 * norm).add(7 * full.mean()).backward()

    mask = case.mask()
    mask.set_step(case.pattern, case.tile_sampling, 0)
    actual = mask(case.weight)
    close(actual, masked.detach(), 1e-4)
    close(mask.kept_norm, norm.detach(), 1e-4)
    # A soft group of four sums to two, so the density depends on the tiles alone; the mean of the full mask must agree.
    close(mask.density().detach(), full.mean().detach(), 1e-6)
    (actual * outer).sum().sub(0.3 * mask.kept_norm).add(7 * mask.density()).backward()
    if logits is not None:
        close(mask.pattern_logits.grad, logits.grad, 1e-3)
        assert mask.pattern_logits.grad.dtype == torch.float32
    if tiles is not None:
        close(mask.tile_logits.grad, tiles.grad, 1e-3)
        assert mask.tile_logits.grad.dtype == torch.float32


@pytest.mark.parametrize("mode", ["joint", "tile", "2:4"])
@pytest.mark.parametrize("used", ["weight", "norm"])
def test_gradient_through_one_output_alone(mode: str, used: str, given_noise) -> None:  # noqa: ANN001
    case = make(mode, "first", False, shape=(4, 8), seed=3)
    given_noise(case)
    full, logits, tiles = obvious(case)
    masked = full * case.weight.double()
    (masked.sum() if used == "weight" else masked.square().sum()).backward()
    mask = case.mask()
    mask.set_step(case.pattern, case.tile_sampling, 0)
    actual = mask(case.weight)
    (actual.sum() if used == "weight" else mask.kept_norm).backward()
    for expected, parameter in ((logits, mask.pattern_logits), (tiles, mask.tile_logits)):
        if expected is not None:
            close(parameter.grad, expected.grad, 1e-4)
            assert parameter.grad.abs().sum() > 0


def test_a_tile_that_is_larger_than_a_group_and_not_square_grid(given_noise) -> None:  # noqa: ANN001
    case = make("joint", "first", False, shape=(24, 12), tile=12, seed=4)
    given_noise(case)
    full, _, tiles = obvious(case)
    (full * case.weight.double()).sum().backward()
    mask = case.mask()
    mask.set_step(case.pattern, case.tile_sampling, 0)
    mask(case.weight).sum().backward()
    assert mask.tile_logits.grad.shape == (2, 1)
    close(mask.tile_logits.grad, tiles.grad, 1e-4)


def test_bfloat16_weights_keep_float32_logits_and_norm(given_noise) -> None:  # noqa: ANN001
    case = make("joint", "first", False)
    case.weight = case.weight.bfloat16()
    given_noise(case)
    full, logits, _ = obvious(case)
    masked = full * case.weight.double()
    masked.square().sum().backward()
    mask = case.mask()
    mask.set_step(case.pattern, case.tile_sampling, 0)
    actual = mask(case.weight)
    assert actual.dtype == torch.bfloat16 and mask.kept_norm.dtype == torch.float32
    assert torch.equal(actual, masked.float().bfloat16()) or (actual.double() - masked).abs().max() < 0.02
    mask.kept_norm.backward()
    close(mask.kept_norm.detach(), masked.square().sum().detach(), 1e-5)
    close(mask.pattern_logits.grad, logits.grad, 1e-4)


@pytest.mark.parametrize("hard", [False, True])
def test_finite_at_the_lowest_temperature_with_decided_logits(hard: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = LearnableMask(
        torch.Size((16, 16)),
        torch.randn(6, 64, generator=generator) * 5,
        None,
        torch.randn(4, 4, generator=generator) * 5,
        4,
    )
    mask.set_step(Sampling(500.0, 0.05, hard), Sampling(500.0, 0.05, hard), 1)
    masked = mask(torch.randn(16, 16, generator=generator) * 100)
    (masked.square().sum() - 10 * mask.kept_norm + mask.density()).backward()
    for value in (masked, mask.kept_norm, mask.density(), mask.pattern_logits.grad, mask.tile_logits.grad):
        assert value.isfinite().all()
    tiles = torch.kron(mask.tile_logits.detach() > 0, torch.ones(4, 4)).bool()
    groups = (masked.detach() != 0).reshape(16, 4, 4).sum(-1)
    assert (groups[tiles.reshape(16, 4, 4).all(-1)] == 4).all()


def test_hard_masks_are_binary_and_two_of_four() -> None:
    mask = LearnableMask(torch.Size((8, 8)), torch.zeros(6, 16), None, torch.zeros(2, 2), 4)
    mask.set_step(Sampling(1.0, 4.0, True), Sampling(1.0, 2.0, True), 3)
    values = mask(torch.ones(8, 8)).detach()
    assert set(values.unique().tolist()) <= {0.0, 1.0}
    kept = values.reshape(8, 2, 4).sum(-1)
    dense = mask.shares.detach().bool().repeat_interleave(4, 0)
    assert torch.equal(kept, torch.where(dense, 4.0, 2.0))
    assert mask.density().item() == pytest.approx(values.mean().item())


def test_weights_are_neither_changed_nor_given_a_gradient() -> None:
    weight = torch.randn(8, 8, requires_grad=True)
    before = weight.detach().clone()
    mask = LearnableMask(torch.Size((8, 8)), torch.zeros(6, 16), None, torch.zeros(2, 2), 4)
    mask.set_step(Sampling(1.0, 1.0), Sampling(1.0, 1.0), 3)
    (mask(weight).sum() + mask.kept_norm).backward()
    assert torch.equal(weight, before) and weight.grad is None


def test_same_seed_same_mask_other_seed_other_mask() -> None:
    mask = LearnableMask(torch.Size((8, 8)), torch.zeros(6, 16), None, torch.zeros(2, 2), 4)
    outputs = []
    for seed in (1, 1, 2):
        mask.set_step(Sampling(1.0, 1.0), Sampling(1.0, 1.0), seed)
        outputs.append(mask(torch.ones(8, 8)).detach())
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_without_tiles_the_density_is_one_half() -> None:
    mask = LearnableMask(torch.Size((4, 4)), torch.zeros(6, 4), None, None, None)
    mask.set_step(Sampling(1.0, 1.0), Sampling(1.0, 1.0), 0)
    assert mask.density() == 0.5
    assert mask(torch.ones(4, 4)).mean().item() == pytest.approx(0.5)


def test_final_pattern_is_the_likeliest_or_the_frozen_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 6, generator=generator)
    final = LearnableMask(torch.Size((2, 12)), logits.clone(), None, None, None).final_pattern()
    expected = [SIX[max(range(6), key=lambda k, g=g: logits[k, g].item())] for g in range(6)]
    assert final.int().reshape(6, 4).tolist() == [list(pattern) for pattern in expected]
    frozen = torch.tensor([[1, 0, 1, 0]]).bool()
    assert torch.equal(LearnableMask(torch.Size((1, 4)), None, frozen, None, None).final_pattern(), frozen)
