"""Tests of the schedules and of the order of the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch.learning.schedules import batch_indices, cosine_rate, held_out_rows, ramp


@given(st.floats(0.01, 500), st.floats(0.01, 500), st.integers(2, 300))
def test_ramp_is_linear_from_end_to_end(first: float, last: float, steps: int) -> None:
    values = [ramp((first, last), step, steps) for step in range(steps)]
    assert values[0] == first and values[-1] == pytest.approx(last)
    assert np.diff(values) == pytest.approx((last - first) / (steps - 1), abs=1e-9 * (first + last))


def test_ramp_of_one_step() -> None:
    assert ramp((4.0, 0.05), 0, 1) == 4.0


@pytest.mark.parametrize(("steps", "warmup", "floor"), [(100, 10, 0.0), (50, 0, 0.1), (7, 3, 0.05)])
def test_cosine(steps: int, warmup: int, floor: float) -> None:
    rates = [cosine_rate(step, steps, warmup, floor) for step in range(steps)]
    for step, rate in enumerate(rates[:warmup]):
        assert rate == pytest.approx((step + 1) / warmup)
    assert rates[warmup] == pytest.approx(1.0)
    assert all(a > b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert floor < rates[-1] < floor + 0.7 * (1 - floor)
    middle = warmup + (steps - warmup) / 2
    if middle == int(middle):
        assert rates[int(middle)] == pytest.approx(floor + (1 - floor) / 2)
    assert cosine_rate(steps, steps, warmup, floor) == pytest.approx(floor)
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)


def test_warm_up_from_zero() -> None:
    rates = [cosine_rate(step, 20, 5, from_zero=True) for step in range(20)]
    assert rates[:5] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert rates[5:] == [cosine_rate(step, 20, 5) for step in range(5, 20)]


def test_warm_up_longer_than_the_run() -> None:
    assert [cosine_rate(step, 3, 5) for step in range(3)] == pytest.approx([0.2, 0.4, 0.6])


@given(st.integers(1, 9), st.integers(1, 13), st.integers(0, 5))
def test_each_sequence_once_in_a_pass(batch_size: int, sequences: int, seed: int) -> None:
    steps = -(-3 * sequences // batch_size)
    rows = np.concatenate([batch_indices(step, batch_size, sequences, seed) for step in range(steps)])
    passes = [rows[start : start + sequences].tolist() for start in range(0, 3 * sequences, sequences)]
    assert all(sorted(one) == list(range(sequences)) for one in passes)
    if sequences > 7:
        assert passes[0] != passes[1] and passes[0] != list(range(sequences))


@given(st.integers(0, 50), st.integers(1, 8), st.integers(0, 5))
def test_a_function_of_seed_and_step_alone(step: int, micro_batches: int, seed: int) -> None:
    batch = batch_indices(step, 8 * micro_batches, 37, seed)
    assert batch.dtype == np.int64 and batch.shape == (8 * micro_batches,)
    # A batch equals the concatenation of successive smaller batches.
    smaller = [batch_indices(step * micro_batches + index, 8, 37, seed) for index in range(micro_batches)]
    assert np.array_equal(batch, np.concatenate(smaller))
    assert np.array_equal(batch, batch_indices(step, 8 * micro_batches, 37, seed))


def test_other_seeds_give_other_orders() -> None:
    assert not np.array_equal(batch_indices(0, 30, 30, 0), batch_indices(0, 30, 30, 1))


def test_the_order_of_a_pass_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, calls = np.random.default_rng, []
    monkeypatch.setattr(np.random, "default_rng", lambda seed: calls.append(seed) or draw(seed))
    rows = [batch_indices(step, 256, 100_001, 9) for step in range(500)]
    assert calls == [[9, 0], [9, 1]]
    assert len(np.unique(np.concatenate(rows)[:100_001])) == 100_001


@given(st.integers(1, 9), st.integers(4, 40), st.integers(0, 5), st.integers(1, 3))
def test_held_out_rows_are_never_read(batch_size: int, sequences: int, seed: int, held_out: int) -> None:
    """Every other row is read once in a pass, and the first pass has the order of a run without held-out rows."""
    kept, count = held_out_rows(sequences, seed, held_out).tolist(), sequences - held_out
    assert len(set(kept)) == held_out
    steps = -(-3 * count // batch_size)
    rows = np.concatenate([batch_indices(step, batch_size, sequences, seed, held_out) for step in range(steps)])
    for start in range(0, 3 * count, count):
        assert sorted([*rows[start : start + count], *kept]) == list(range(sequences))
    plain = np.concatenate([batch_indices(step, batch_size, sequences, seed) for step in range(steps)])
    assert rows[:count].tolist() == plain[:count].tolist()
