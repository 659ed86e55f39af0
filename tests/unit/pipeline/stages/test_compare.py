"""Stage that writes differences.csv from the samples of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from patch.pipeline.results.differences import COLUMNS, Differences
from patch.pipeline.results.samples import write_samples
from patch.pipeline.runs.run import Run
from patch.pipeline.runs.stage_settings import CompareSettings
from patch.pipeline.stages.tabulate import run_compare

RUNS = [
    Run(model="qwen", method="dense", pattern="dense", sparsity=0.0),
    Run(model="qwen", method="wanda", pattern="2:4", sparsity=0.5),
]
DIGESTS = {f"qwen/{run.id}": f"digest {number}" for number, run in enumerate(RUNS)}


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{run.id}.json" for run in RUNS]
    for run, path in zip(RUNS, paths, strict=True):
        samples = {"perplexity": rng.normal(3, 1, 50).tolist(), "cloze": rng.integers(0, 2, 80).tolist()}
        write_samples(path, "demo", run, samples, DIGESTS[f"qwen/{run.id}"])
    return paths


def test_writes_the_differences(paths: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "sub/differences.csv"
    run_compare(CompareSettings(digests=DIGESTS), samples=paths, out=out)
    text = out.read_bytes()
    assert text.decode().splitlines()[0].split(",") == COLUMNS
    assert list(Differences.read(out).frame["metric"]) == ["perplexity", "accuracy", "cloze"]
    run_compare(CompareSettings(digests=DIGESTS), samples=paths[::-1], out=out)
    assert out.read_bytes() == text


def test_samples_of_an_unknown_run(stage: Callable, paths: list[Path], tmp_path: Path) -> None:
    settings = CompareSettings(digests=dict(list(DIGESTS.items())[:1])).model_dump(mode="json")
    ended = stage("compare", settings, samples=paths[1], out=tmp_path / "differences.csv")
    assert ended.code == 2
    assert "results of `qwen/wanda_2of4_0.5_s0`, which is not one of the 1 expected results" in ended.error
    assert not (tmp_path / "differences.csv").exists()
