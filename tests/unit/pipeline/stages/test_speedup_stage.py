"""Stage that measures speed, and the table and figure of its record."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patch.masks.nm import NM
from patch.masks.packed import MaskSet, save_masks
from patch.masks.tile import expand_tiles, tile_grid
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.results.collect import COLUMNS
from patch.pipeline.results.differences import COLUMNS as DIFFERENCES
from patch.pipeline.results.speed import SpeedRecord
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run
from patch.pipeline.stages._run import run_stage
from patch.pruning.prune import prune


@pytest.fixture
def plan(raw_config: dict) -> Plan:
    """Return a plan with a section `speedup`, and a 2:4 and a hybrid run of one model."""
    raw_config |= {
        "speedup": {"batch_size": 2, "prompt": 5, "new_tokens": [3, 6], "repeats": 4},
        "grid": [
            {"methods": ["magnitude"], "models": ["qwen"]},
            {"methods": ["patch"], "models": ["qwen"], "sparsity": [0.25]},
        ],
    }
    return Plan(validate_experiment(raw_config))


@pytest.fixture
def masks(plan: Plan, tiny_model: Callable, tmp_path: Path) -> list[Path]:
    """Return the masks of the runs, made without the workflow."""
    pattern = prune(tiny_model("qwen2"), "magnitude", NM(2, 4)).masks
    tiles = {n: torch.arange(m.numel() // 16).view(tile_grid(m.shape, 4)) % 2 == 0 for n, m in pattern.items()}
    hybrid = {name: mask | expand_tiles(tiles[name], mask.shape) for name, mask in pattern.items()}
    paths = [tmp_path / "pattern.safetensors", tmp_path / "hybrid.safetensors"]
    expected = plan.settings.speedup("qwen").masks
    for path, masks, one in zip(
        paths, (MaskSet(pattern, "2:4"), MaskSet(hybrid, "hybrid", tiles, 4)), expected, strict=True
    ):
        masks.header = {"settings": {"method": one.method}, "digest": one.digest}
        save_masks(path, masks)
    return paths


@pytest.fixture
def measured(plan: Plan, masks: list[Path], files: Any, job_file: Callable, tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs the stage and returns its exit code."""

    def run(*paths: Path, **changes: Any) -> int:
        settings = plan.settings.speedup("qwen").model_dump(mode="json") | changes
        inputs = {"model": str(files.model), "masks": [*map(str, paths or masks)]}
        options = ["--settings", job_file("speedup", settings), "--inputs", job_file("inputs", inputs)]
        return run_stage(["speedup", *map(str, options), "--record", str(tmp_path / "speed.json")])

    return run


def test_record(measured: Callable, plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert measured() == 0
    record = SpeedRecord.read(tmp_path / "speed.json")
    runs = [Run(model="qwen", method="dense", pattern="dense", sparsity=0.0), *plan.timed_runs("qwen")]
    assert [(timed.new_tokens, timed.run) for timed in record.timed] == [(new, run) for new in (3, 6) for run in runs]
    assert record.settings.model_dump() == {"batch_size": 2, "prompt": 5, "new_tokens": [3, 6], "repeats": 4}
    assert (record.device, record.dtype, record.experiment) == ("cpu", "float32", "tiny") and record.hardware
    dense, pattern, hybrid = record.timed_with(6)
    assert dense.speedup.model_dump() == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert (dense.achieved_sparsity, pattern.achieved_sparsity) == (0.0, 0.5)
    assert hybrid.achieved_sparsity == pytest.approx(0.25, abs=0.01)
    assert pattern.linear_bytes.measured < hybrid.linear_bytes.measured < dense.linear_bytes.measured
    assert pattern.peak_memory_mb < hybrid.peak_memory_mb < dense.peak_memory_mb
    assert dense.backends == {"prefill": {"dense": 14}, "decode": {"dense": 14}}
    for timed in (pattern, hybrid):
        assert timed.linear_bytes.measured == timed.linear_bytes.expected
        assert timed.logits_difference < 1e-3 * timed.largest_logit
        assert sum(timed.backends["prefill"].values()) == 14
    for timed in record.timed:
        assert timed.tokens_per_second.low <= timed.tokens_per_second.median <= timed.tokens_per_second.high
        assert timed.prefill_seconds.median > 0 and timed.decode_seconds.median > 0
    for short, long in zip(record.timed_with(3), record.timed_with(6), strict=True):
        assert (short.linear_bytes, short.logits_difference) == (long.linear_bytes, long.logits_difference)
    out = capfd.readouterr().out
    assert "magnitude_2of4_0.5_s0: converted; logits differ by" in out and "tokens/s, 1.000 of dense" in out
    assert "magnitude_2of4_0.5_s0, 6 new tokens:" in out


@pytest.mark.parametrize(
    ("disturbed", "rounds", "noisy"), [(0, 1, set()), (54, 2, set()), (10**6, 3, {"prefill_seconds", "speedup"})]
)
def test_noisy_times_are_measured_again_and_marked(
    disturbed: int,
    rounds: int,
    noisy: set[str],
    measured: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    """Check a clock that is steady, disturbed in the first round (3 candidates, 6 turns, 3 stamps), or always."""
    stamps = itertools.count()

    def clock() -> float:
        # Prefill and decoding take a second each; in half of the disturbed generations, prefill takes 9 s.
        generation, stamp = divmod(next(stamps), 3)
        slow = 3 * generation < disturbed and generation % 4 in (0, 3)
        return 100.0 * generation + stamp + 8 * (slow and stamp > 0)

    monkeypatch.setattr("patch.inference.timing.time", SimpleNamespace(perf_counter=clock))
    assert measured(speedup={"batch_size": 2, "prompt": 5, "new_tokens": [3], "repeats": 4}) == 0
    dense, *sparse = SpeedRecord.read(tmp_path / "speed.json").timed
    assert [timed.rounds for timed in (dense, *sparse)] == [rounds] * 3
    assert all(noisy <= set(timed.noisy) and bool(noisy) == bool(timed.noisy) for timed in sparse)
    assert all("decode_seconds" not in timed.noisy for timed in (dense, *sparse))
    out = capfd.readouterr().out
    assert out.count(f" in {rounds} round") == 3 and out.count("; noisy: ") == (3 if noisy else 0)


def test_masks_must_be_of_the_runs(measured: Callable, masks: list[Path], capfd: pytest.CaptureFixture) -> None:
    assert measured(masks[0]) == 2
    assert "error: 1 masks of 2 runs; give one of each, in their order" in capfd.readouterr().err


def test_more_tokens_than_the_model_has_positions(measured: Callable, capfd: pytest.CaptureFixture) -> None:
    sizes = {"batch_size": 1, "prompt": 60, "new_tokens": [2, 10], "repeats": 4}
    assert measured(speedup=sizes) == 2
    printed = capfd.readouterr()
    assert "60 tokens and 10 new ones need 70 positions; the model has 64: lower `speedup.prompt` or" in printed.err
    assert printed.out == "", "nothing is converted or timed before"


def test_a_damaged_record_stops_the_table(
    stage: Callable, plan: Plan, measured: Callable, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "speed.json").write_text('{"schema": 1, "experiment": "tiny"')
    settings = plan.settings.tabulate(speed=True).model_dump(mode="json")
    (tmp_path / "results.csv").write_text(",".join(COLUMNS) + "\n")
    (tmp_path / "differences.csv").write_text(",".join(DIFFERENCES) + "\n")
    options = {"results": tmp_path / "results.csv", "differences": tmp_path / "differences.csv"}
    options |= {"speedups": tmp_path / "speed.json", "out": tmp_path / "tables/speedup"}
    ended = stage("table", settings, **options)
    assert ended.code == 2 and "speed.json: not valid JSON" in ended.error
    assert measured() == 0
    ended = stage("table", settings, **options)
    assert ended.code == 0, ended.error
    assert "Speed of greedy generation on" in (tmp_path / "tables/speedup.md").read_text()
    figure = plan.settings.speedup_figure("qwen").model_dump(mode="json")
    options = {"results": tmp_path / "results.csv", "speedup": tmp_path / "speed.json", "out": tmp_path / "figure"}
    assert stage("speedup_figure", figure, **options).code == 0
    assert (tmp_path / "figure.svg").stat().st_size > 1000
