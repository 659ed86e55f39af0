"""Tests of the learning rate that fits the tokens of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch.learning.learning_rate import far_rate, fitting_rate, with_rate
from patch.learning.learning_settings import METHOD_DEFAULTS, Learning

# Method, weights, steps, tokens per step, and the best of the rates 1e-4, 3e-4, 1e-3, ... that were measured
# (docs/results.md): the lowest and the highest of those whose losses do not differ.
MEASURED = [
    ("patch-joint", 393_216, 120, 256, 3e-4, 1e-3),
    ("patch-joint", 393_216, 30, 1024, 1e-3, 1e-3),
    ("patch-joint", 393_216, 120, 1024, 1e-3, 1e-3),
    ("patch-joint", 393_216, 480, 1024, 1e-3, 3e-3),
    ("patch-joint", 393_216, 120, 4096, 1e-3, 3e-3),
    ("patch-joint", 106_168_320, 120, 512, 3e-4, 3e-4),
    ("patch-tile", 393_216, 30, 1024, 1e-2, 1e-2),
    ("patch-tile", 393_216, 120, 1024, 3e-3, 1e-2),
    ("patch-tile", 393_216, 480, 1024, 3e-3, 3e-3),
]


def settings(steps: int, tokens: int, **others: object) -> Learning:
    return Learning(steps=steps, batch_size=tokens // 64, seqlen=64, lr="auto", **others)


@pytest.mark.parametrize("weights", [350_000_000, 1_000_000_000, 7_000_000_000])
@pytest.mark.parametrize("method", ["maskllm", "patch-joint"])
def test_the_paper(method: str, weights: int) -> None:
    assert fitting_rate(Learning(), method, weights) == pytest.approx(1e-3, rel=0.02)
    assert far_rate(Learning(), method, weights) == ""


@pytest.mark.parametrize(("method", "weights", "steps", "tokens", "low", "high"), MEASURED)
def test_small_budgets(method: str, weights: int, steps: int, tokens: int, low: float, high: float) -> None:
    assert low / 1.8 < fitting_rate(settings(steps, tokens), method, weights) < high * 1.8


@given(st.integers(1, 20), st.integers(1, 1000), st.floats(1e5, 1e10))
def test_growth(doublings: int, steps: int, weights: float) -> None:
    tokens = 64 * 2**doublings
    rate = fitting_rate(settings(steps, tokens), "maskllm", weights)
    # A walk without signal stays within the distance that full signal justifies.
    assert 0 < rate * math.sqrt(steps) < 1.5 * 0.03
    assert rate < fitting_rate(settings(steps, 2 * tokens), "maskllm", weights) <= rate * math.sqrt(2) * (1 + 1e-9)
    assert fitting_rate(settings(steps, tokens, pattern_std=0.02), "maskllm", weights) == pytest.approx(2 * rate)
    assert fitting_rate(settings(steps, tokens), "maskllm", 10 * weights) < rate


def test_rates_that_are_not_automatic() -> None:
    assert with_rate(settings(100, 1024), "proxsparse", 10**6).lr == METHOD_DEFAULTS["proxsparse"]["lr"]
    assert with_rate(Learning(lr=0.5), "maskllm", 10**6).lr == 0.5
    for method in ("proxsparse", "patch-tile"):
        assert far_rate(Learning(lr=1.0), method, 10**6) == ""


def test_a_rate_far_off() -> None:
    few = {"steps": 120, "batch_size": 4, "seqlen": 128}
    assert far_rate(Learning(lr=1e-3, **few), "maskllm", 10**8) == ""
    sentence = far_rate(Learning(lr=1e-2, **few), "maskllm", 10**8)
    assert "the learning rate 0.01 of maskllm may destroy the initial mask" in sentence
    assert "0.00036 fits 61,440 tokens in 120 steps (`lr: auto`)" in sentence
    assert "may leave the initial mask as it is" in far_rate(Learning(lr=1e-5, **few), "patch-joint", 10**8)


def test_learning_with_the_fitting_rate(run_learning: Callable, tiny_model: Callable) -> None:
    model = tiny_model("qwen2")
    weights = sum(parameter.numel() for name, parameter in model.named_parameters() if "_proj.weight" in name)
    for method in ("maskllm", "patch-tile"):
        _, curve = run_learning(method, model=model, folder=method, lr="auto", warmup_steps=0)
        few = Learning(steps=5, batch_size=4, seqlen=12)
        assert curve[0]["lr"] == pytest.approx(fitting_rate(few, method, weights))
