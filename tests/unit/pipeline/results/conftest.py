"""Fixtures of a raw record and the published numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patch.pipeline.results.published import Published, load_published

RAW: dict[str, Any] = {
    "schema": 1,
    "experiment": "demo",
    "run": {
        "model": "qwen",
        "method": "wanda",
        "pattern": "2:4",
        "sparsity": 0.5,
        "tile": None,
        "seed": 0,
    },
    "metrics": {
        "next_verse": {"value": 0.6, "stderr": 0.03, "chance": 0.25, "samples": 200},
        "perplexity": {"value": 28.5, "stderr": 0.2, "samples": 400},
        "order": {"value": 0.5, "stderr": None, "chance": 0.5},
        "accuracy": {"value": 0.55, "stderr": 0.01},
    },
    "achieved_sparsity": 0.5,
    "density": {"model.layers.0.self_attn.q_proj": 0.5},
    "config_digest": "abcd",
    "stages": {
        "prune": {"seconds": 2.0, "peak_memory_mb": 900.0},
        "evaluate": {"seconds": 12.5, "peak_memory_mb": 800.0},
    },
    "environment": {
        "git_commit": None,
        "python": "3.11.9",
        "packages": {"torch": "2.5"},
        "device": "cpu",
        "threads": 1,
        "time": "2026-01-01T00:00:00+00:00",
    },
}


@pytest.fixture
def raw() -> Callable[..., dict[str, Any]]:
    """Return a function that returns a raw record whose run has the given keys changed."""

    def make(**run: Any) -> dict[str, Any]:
        record = copy.deepcopy(RAW)
        record["run"] |= run
        return record

    return make


@pytest.fixture(scope="session")
def published() -> Published:
    """Return the paper's numbers."""
    return load_published(Path(__file__).parents[4] / "config/published.json")
