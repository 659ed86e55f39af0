"""Tests of the learning rate that fits the tokens of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch.learning.learning_rate import far_rate, fitting_rate, with_rate
from patch.learning.learning_settings import METHOD_DEFAULTS, Learning

# Weights, steps, tokens per step, and the best of the rates 1, 3, 10, 30, ... 1e-4 that was measured (docs/results.md).
MEASURED = [
    (425_000, 120, 256, 3e-4, 1e-3),
    (425_000, 30, 1024, 1e-3, 1e-3),
    (425_000, 120, 1024, 1e-3, 1e-3),
    (425_000, 480, 1024, 1e-3, 3e-3),
    (425_000, 120, 4096, 1e-3, 3e-3),
    (106_000_000, 120, 512, 3e-4, 3e-4),
]


def settings(steps: int, tokens: int, **others: object) -> Learning:
    return Learning(steps=steps, batch_size=tokens // 64, seqlen=64, lr="auto", **others)


@pytest.mark.parametrize("weights", [350_000_000, 1_000_000_000, 7_000_000_000])
def test_the_paper(weights: int) -> None:
    paper = Learning(lr="auto")
    assert fitting_rate(paper, weights) == pytest.approx(Learning().lr, rel=0.02)
    assert far_rate("patch-joint", Learning(), weights) == ""


@pytest.mark.parametrize(("weights", "steps", "tokens", "low", "high"), MEASURED)
def test_small_budgets(weights: int, steps: int, tokens: int, low: float, high: float) -> None:
    assert low / 1.8 < fitting_rate(settings(steps, tokens), weights) < high * 1.8


@given(st.integers(1, 20), st.integers(1, 1000), st.floats(1e5, 1e10))
def test_growth(doublings: int, steps: int, weights: float) -> None:
    tokens = 64 * 2**doublings
    rate = fitting_rate(settings(steps, tokens), weights)
    # A walk without signal stays within the distance that full signal justifies.
    assert 0 < rate * math.sqrt(steps) < 1.5 * 0.03
    assert rate < fitting_rate(settings(steps, 2 * tokens), weights) <= rate * math.sqrt(2) * (1 + 1e-9)
    assert fitting_rate(settings(steps, tokens, pattern_std=0.02), weights) == pytest.approx(2 * rate)
    assert fitting_rate(settings(steps, tokens), 10 * weights) < rate


def test_methods_without_pattern_logits_keep_their_published_rate() -> None:
    for method in ("proxsparse", "patch-tile"):
        assert with_rate(settings(100, 1024), method, 10**6).lr == METHOD_DEFAULTS[method]["lr"]
        assert far_rate(method, Learning(lr=1.0), 10**6) == ""
    assert with_rate(Learning(lr=0.5), "maskllm", 10**6).lr == 0.5


def test_a_rate_far_off() -> None:
    few = {"steps": 120, "batch_size": 4, "seqlen": 128}
    assert far_rate("maskllm", Learning(lr=1e-3, **few), 10**8) == ""
    sentence = far_rate("maskllm", Learning(lr=1e-2, **few), 10**8)
    assert "the learning rate 0.01 of maskllm may destroy the initial mask" in sentence
    assert "0.00036 fits 61,440 tokens in 120 steps (`lr: auto`)" in sentence
    assert "may leave the initial mask as it is" in far_rate("patch-joint", Learning(lr=1e-5, **few), 10**8)


def test_learning_with_the_fitting_rate(run_learning: Callable, tiny_model: Callable) -> None:
    model = tiny_model("qwen2")
    weights = sum(parameter.numel() for name, parameter in model.named_parameters() if "_proj.weight" in name)
    _, curve = run_learning("maskllm", model=model, lr="auto", warmup_steps=0)
    few = Learning(steps=5, batch_size=4, seqlen=12, lr="auto")
    assert curve[0]["lr"] == pytest.approx(fitting_rate(few, weights))
