"""Fixtures: speed records as the stage writes them, and an environment without programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patch.pipeline.runs.run import Run

# Method, pattern, sparsity, speedup.
RUNS = (
    ("dense", "dense", 0.0, 1.0),
    ("wanda", "2:4", 0.5, 1.5),
    ("patch", "hybrid", 0.45, 1.4),
    ("patch", "hybrid", 0.25, 1.2),
)


def _quartiles(median: float, spread: float) -> dict[str, float]:
    return {"median": median, "low": median - spread, "high": median + spread}


def _timed(model: str, variant: str, tile: int, new_tokens: int, run: tuple[str, str, float, float]) -> dict[str, Any]:
    method, pattern, sparsity, gain = run
    name = f"patch-{variant}" if method == "patch" else method
    size = tile if pattern == "hybrid" else None
    run = Run(model=model, method=name, pattern=pattern, sparsity=sparsity, tile=size)
    return {
        "run": run.model_dump(),
        "new_tokens": new_tokens,
        "achieved_sparsity": sparsity,
        "tokens_per_second": _quartiles(1000 * gain, 30.0),
        "prefill_seconds": _quartiles(0.1 / gain, 0.01),
        "decode_seconds": _quartiles(2.0 / gain, 0.01),
        "speedup": _quartiles(gain, 0.02 if gain != 1 else 0.0),
        "rounds": 1,
        "noisy": [],
        "linear_bytes": {"dense": 8_000_000, "measured": int(8e6 * (1 - 0.875 * sparsity)), "expected": 1},
        "peak_memory_mb": 10.0,
        "backends": {"prefill": {"unpacked": 14}, "decode": {"unpacked": 14}},
        "logits_difference": 1e-5,
        "largest_logit": 12.0,
    }


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that is the only one on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


@pytest.fixture
def speed_record() -> Callable[..., dict[str, Any]]:
    """Return a function that makes the raw record of a model, variant of PATCH and tile, with some keys changed."""

    def make(
        model: str = "qwen",
        variant: str = "joint",
        tile: int = 16,
        new_tokens: tuple[int, ...] = (128,),
        **changes: Any,
    ) -> dict[str, Any]:
        record = {
            "schema": 1,
            "experiment": "demo",
            "model": model,
            "settings": {"batch_size": 16, "prompt": 128, "new_tokens": list(new_tokens), "repeats": 20},
            "dtype": "float32",
            "device": "cpu",
            "hardware": "A CPU @ 2 GHz",
            "timed": [_timed(model, variant, tile, new, run) for new in new_tokens for run in RUNS],
            "config_digest": "abcd",
            "cost": {"seconds": 12.0, "peak_memory_mb": 900.0},
            "environment": {
                "git_commit": None,
                "python": "3.11.9",
                "packages": {"torch": "2.5"},
                "device": "x86_64",
                "threads": 2,
                "time": "2026-01-01T00:00:00+00:00",
            },
        }
        return record | changes

    return make
