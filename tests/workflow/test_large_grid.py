"""A grid of 504 runs, whose inputs exceed the maximum length of a command-line argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from patch.pipeline.config.load import load_experiment
from patch.pipeline.results.record import Record
from patch.pipeline.results.samples import write_samples
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.plan import Plan

LONGEST_ARGUMENT = 131_071
SEEDS = 63
RUNS = 8 * SEEDS
MODEL = "model-with-a-name-as-long-as-those-of-checkpoints"


def record(plan: Plan, run: Any, samples: dict[str, list[float]]) -> dict[str, Any]:
    settings = plan.settings.evaluate(run)
    perplexity = float(np.exp(np.mean(samples["perplexity"])))
    tasks = {
        name: {"value": float(np.mean(v)), "samples": len(v)} for name, v in samples.items() if name != "perplexity"
    }
    accuracy = {"value": float(np.mean([task["value"] for task in tasks.values()]))}
    cost = {"seconds": 1.0, "peak_memory_mb": 1.0}
    return {
        "schema": 1,
        "experiment": settings.experiment,
        "run": settings.run.model_dump(),
        "metrics": {"perplexity": {"value": perplexity, "samples": 8}, "accuracy": accuracy, **tasks},
        "achieved_sparsity": run.sparsity,
        "density": {"model.layers.0.self_attn.q_proj": 1 - run.sparsity},
        "config_digest": settings_digest(settings),
        "stages": {"evaluate": cost},
        "environment": {
            "git_commit": None,
            "python": "3",
            "packages": {},
            "device": "cpu",
            "threads": 1,
            "time": "2030-01-02T03:04:05",
        },
    }


@pytest.fixture(scope="module")
def large(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the records and samples of all runs."""
    folder = tmp_path_factory.mktemp("large")
    settings = yaml.safe_load((finished / "tiny.yaml").read_text())
    source = settings["models"]["local"] | {"source": {"kind": "local", "path": str(finished / "local-model")}}
    settings |= {"experiment": "large", "models": {MODEL: source}, "seeds": list(range(SEEDS))}
    settings["corpora"]["made"]["source"]["files"] = [str(finished / "text/*.txt")]
    settings["grid"] = [
        {"methods": ["wanda", "sparsegpt", "thanos", "maskllm"]},
        {"methods": ["wanda", "sparsegpt"], "pattern": "unstructured", "sparsity": [0.45]},
        {"methods": ["patch"], "sparsity": [0.45, 0.25]},
    ]
    del settings["speedup"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        plan = Plan(load_experiment("tiny.yaml"))
        rng = np.random.default_rng(0)
        for run in plan.grid.runs:
            samples = {"perplexity": (3 + rng.random(8)).tolist()}
            samples |= {task: rng.integers(0, 2, 12).tolist() for task in settings["evaluation"]["tasks"]}
            Record.write(plan.layout.record(run), record(plan, run, samples))
            digest = plan.settings.record_digest(run)
            write_samples(plan.layout.samples(run), "large", run, samples, digest)
        assert len(plan.grid.runs) == RUNS
        assert len(plan.settings.tabulate().model_dump_json()) > LONGEST_ARGUMENT
    return folder


def test_tables_of_hundreds_of_runs(large: Path, snakemake: Callable, planned: Callable) -> None:
    assert planned(large)["collect"] == 1
    targets = [f"results/large/{name}" for name in ("results.csv", "tables/joint.md", "README.md")]
    run = snakemake(large, *targets)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len((large / targets[0]).read_text().splitlines()) > 6 * RUNS
    assert f"All {RUNS} runs have a record." in (large / targets[2]).read_text()
