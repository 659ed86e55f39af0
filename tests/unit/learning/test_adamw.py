"""AdamW with moments in bfloat16: the update of the fp32 one, and rounding that loses nothing on average."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patch.learning import adamw
from patch.learning.adamw import AdamW, make_optimizer, stochastically_rounded
from patch.masks.noise import mixed, places

SHAPES = [(7, 5), (64,), (3, 4, 5), (1,)]


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def take_steps(optimizer: torch.optim.Optimizer, values: list[torch.nn.Parameter], steps: range) -> None:
    """Steps whose learning rate and gradients depend on their number alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + step % 3)
        for value in values:
            value.grad = torch.randn(value.shape, generator=generator).to(value.dtype)
        optimizer.step()


def random_bits(count: int, seed: int = 0) -> torch.Tensor:
    return mixed(places(count), (seed, 1))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.0, 0.5)])
def test_against_torch_in_float64(weight_decay: float, betas: tuple[float, float]) -> None:
    ours, theirs = parameters(), parameters(torch.float64)
    take_steps(AdamW(ours, 0.01, betas, weight_decay, torch.float32), ours, range(20))
    take_steps(torch.optim.AdamW(theirs, 0.01, betas, weight_decay=weight_decay), theirs, range(20))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_change_no_bit_of_the_moments(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = parameters(), parameters()
    one, other = AdamW(whole, 0.01, seed=3), AdamW(cut, 0.01, seed=3)
    take_steps(one, whole, range(3))
    monkeypatch.setattr(adamw, "CHUNK", chunk)
    take_steps(other, cut, range(3))
    for value, expected in zip(cut, whole, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
        for name in ("first", "second"):
            assert other.state[value][name].dtype == torch.bfloat16
            # Parts of a vector instruction may round the last bit of fp32 otherwise.
            torch.testing.assert_close(other.state[value][name], one.state[expected][name], rtol=1e-2, atol=0)


@pytest.mark.parametrize("state", ["float32", "bfloat16"])
def test_a_saved_state_goes_on_bit_for_bit(state: str, learning_settings: Callable, tmp_path: Path) -> None:
    settings = learning_settings(optimizer_state=state, weight_decay=0.1)
    whole, part = parameters(), parameters()
    take_steps(make_optimizer(whole, settings, 5), whole, range(9))
    first = make_optimizer(part, settings, 5)
    take_steps(first, part, range(4))
    torch.save({"optimizer": first.state_dict(), "values": [value.detach() for value in part]}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = [torch.nn.Parameter(value) for value in saved["values"]]
    second = make_optimizer(resumed, settings, 5)
    second.load_state_dict(saved["optimizer"])
    take_steps(second, resumed, range(4, 9))
    for value, expected in zip(resumed, whole, strict=True):
        assert torch.equal(value, expected)
    moments = [moment for value in resumed for name, moment in second.state[value].items() if name != "step"]
    assert {moment.dtype for moment in moments} == {getattr(torch, state)}


def test_rounding_depends_on_seed_step_parameter_and_element() -> None:
    value = torch.nn.Parameter(torch.zeros(4000))
    twin = torch.nn.Parameter(torch.zeros(4000))
    optimizer, other = AdamW([value, twin], 0.01, seed=0), AdamW([torch.nn.Parameter(torch.zeros(4000))], 0.01, seed=1)
    found = []
    for _ in range(2):
        for parameter in (value, twin, *other.param_groups[0]["params"]):
            parameter.grad = torch.full((4000,), 1.2345)
            for moment in (optimizer.state[parameter] or other.state[parameter]).values():
                moment.zero_()
        optimizer.step()
        other.step()
        for parameter in (value, twin, *other.param_groups[0]["params"]):
            first, second = (optimizer.state[parameter] or other.state[parameter]).values()
            found += [first > first.min(), second > second.min()]
    assert all(0.02 < flags.float().mean() < 0.98 for flags in found), "both neighbours are there"
    for place, flags in enumerate(found):
        for others in found[:place]:
            independent = flags.float().mean() * others.float().mean()
            assert abs((flags & others).float().mean() - independent) < 0.04


@pytest.mark.parametrize("value", [1.0, 1.001, -1.003, 3e-9, -7.7e20, 0.0])
def test_rounding_is_unbiased(value: float) -> None:
    count = 200_000
    rounded = stochastically_rounded(torch.full((count,), value), random_bits(count)).double()
    exact = torch.tensor(value).double()
    neighbours = rounded.unique()
    assert len(neighbours) <= 2 and neighbours.min() <= exact <= neighbours.max()
    # Three standard errors of a mean of two values that are one unit apart.
    assert abs(rounded.mean() - exact) <= 3 * 0.5 * (neighbours.max() - neighbours.min()) / count**0.5


def test_what_is_not_finite_stays() -> None:
    bits = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32)
    for value in (float("inf"), float("-inf")):
        assert (stochastically_rounded(torch.full((8,), value), random_bits(8)) == value).all()
    # A GPU's NaN has all bits set.
    assert stochastically_rounded(bits.view(torch.float32), random_bits(2)).isnan().all()


def test_small_changes_survive_where_rounding_to_nearest_stalls() -> None:
    """A moment of 1 decays by a thousandth a step, a quarter of the distance to its neighbour."""
    steps, beta = 500, 0.999
    nearest = by_chance = torch.ones(20_000).bfloat16()
    for step in range(steps):
        nearest = (beta * nearest.float()).bfloat16()
        by_chance = stochastically_rounded(beta * by_chance.float(), random_bits(20_000, step))
    assert (nearest == 1).all()
    assert by_chance.float().mean() == pytest.approx(beta**steps, rel=1e-3)


def test_parameters_without_gradient_stay() -> None:
    values = parameters()
    before = [value.detach().clone() for value in values]
    optimizer = AdamW(values, 0.01, weight_decay=0.5)
    values[0].grad = torch.ones_like(values[0])
    optimizer.step()
    assert not torch.equal(values[0], before[0])
    assert all(torch.equal(value, old) for value, old in zip(values[1:], before[1:], strict=True))


def test_no_temporary_is_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    real = AdamW._update

    def update(self: AdamW, group: Any, value: torch.Tensor, *rest: Any) -> None:
        largest.append(value.numel())
        real(self, group, value, *rest)

    monkeypatch.setattr(AdamW, "_update", update)
    monkeypatch.setattr(adamw, "CHUNK", 16)
    values = parameters()
    take_steps(AdamW(values, 0.01), values, range(1))
    assert max(largest) == 16 and sum(largest) == sum(value.numel() for value in values)


@pytest.mark.parametrize("method", ["patch-joint", "patch-tile"])
def test_learning_ends_where_float32_does(method: str, run_learning: Callable) -> None:
    options = {"steps": 60, "lr": 0.02, "weight_reg": 2.0, "warmup_steps": 3}
    expected, expected_curve = run_learning(method, folder="exact", **options)
    found, curve = run_learning(method, folder="rounded", optimizer_state="bfloat16", **options)
    same = count = 0
    for name, mask in found.masks.items():
        equal = (mask == expected.masks[name]).reshape(-1, 4).all(1)
        same, count = same + int(equal.sum()), count + len(equal)
    assert same / count >= 0.97
    # A step's loss is that of its own sample of tiles, a few dozen here, so the end is more than one step; and of the
    # text alone: what the reward takes from it leaves so little that a percent of that is less than the sample's noise.
    ends = [sum(line["cross_entropy"] for line in lines[-10:]) for lines in (curve, expected_curve)]
    assert ends[0] == pytest.approx(ends[1], rel=0.01)
    assert curve != expected_curve


def test_a_stopped_run_with_rounded_moments_ends_as_a_whole_one(
    run_learning: Callable, same_masks: Callable, tmp_path: Path
) -> None:
    options = {"optimizer_state": "bfloat16", "checkpoint_minutes": 1e-9}
    masks, curve = run_learning(**options)
    # The finished run's checkpoint before the last.
    max((tmp_path / "run").glob("*.pt")).unlink()
    resumed, resumed_curve = run_learning(**options)
    same_masks(resumed, masks)
    assert resumed_curve == curve
