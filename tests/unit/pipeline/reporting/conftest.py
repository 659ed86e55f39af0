"""Fixtures with the records of an experiment: three models, all methods, a few tasks."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from patch.pipeline.results.collect import collect
from patch.pipeline.results.published import Published, load_published
from patch.pipeline.results.record import Record
from patch.pipeline.runs.run import ModelInfo, Run

ROOT = Path(__file__).parents[4]
TASKS = {"cloze_words": 0.25, "next_verse": 0.25, "who_speaks": 0.25, "order": 0.5, "grammar": 0.5, "rhyme": 0.25}
PAPER_TASKS = dict.fromkeys(("mmlu", "arc_easy", "arc_challenge", "openbookqa", "race", "hellaswag"), 0.25)
PAPER_TASKS |= {"piqa": 0.5, "winogrande": 0.5}
# Growth of perplexity over the dense model's, as measured on small models.
GROWTH = {"magnitude": 0.29, "wanda": 0.24, "sparsegpt": 0.12, "maskllm": 0.10, "patch-joint": 0.13, "patch-tile": 0.15}
MODELS = [
    ModelInfo(
        name="qwen", title="Qwen2-mini", variant="joint", published="Qwen/Qwen2.5-0.5B", comparable=False, tile=16
    ),
    ModelInfo(name="gemma", title="Gemma-3-1B", variant="joint", published="google/gemma-3-1b-pt"),
    ModelInfo(
        name="llama",
        title="Llama-mini",
        variant="tile",
        published="meta-llama/Llama-2-7b-hf",
        comparable=False,
        tile=16,
    ),
]


@dataclass
class Experiment:
    """Inputs of tables and figures."""

    records: list[Record]
    models: list[ModelInfo]
    expected: list[Run]
    published: Published

    @property
    def frame(self) -> pd.DataFrame:
        """Return the tidy frame of the records."""
        return collect(self.records, self.models, self.published)


def grid(models: list[ModelInfo], seeds: int) -> list[Run]:
    """Return runs like those of the demo."""
    runs = []
    for model, seed in itertools.product(models, range(seeds)):
        one_shot = [
            Run(model=model.name, method=m, pattern="2:4", sparsity=0.5, seed=seed)
            for m in ("wanda", "sparsegpt", "maskllm")
        ]
        levels, tile = (0.45, 0.35, 0.25), 128 if model.comparable else 16
        free = [
            Run(model=model.name, method=m, pattern="unstructured", sparsity=s, seed=seed)
            for m in ("wanda", "sparsegpt")
            for s in levels
        ]
        hybrid = [
            Run(model=model.name, method=f"patch-{model.variant}", pattern="hybrid", sparsity=s, tile=tile, seed=seed)
            for s in levels
        ]
        fixed = [
            Run(model=model.name, method="dense", pattern="dense", sparsity=0.0),
            Run(model=model.name, method="magnitude", pattern="2:4", sparsity=0.5),
        ]
        runs += [*(fixed if seed == 0 else []), *one_shot, *free, *hybrid]
        if model.variant == "tile":
            runs += [run.model_copy(update={"quantization": "absmax"}) for run in (*one_shot[2:], *hybrid)]
            runs += [run.model_copy(update={"quantization": "slim-lora"}) for run in hybrid]
    return runs


def density(model: str, sparsity: float, rng: np.random.Generator) -> dict[str, float]:
    """Return densities as in the paper: K and V nearly dense, the MLP sparse."""
    layers = {"qwen": 2, "gemma": 26, "llama": 6}[model]
    shapes = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
    names = [f"model.layers.{i}.{block}.{p}" for i in range(layers) for block, ps in shapes.items() for p in ps]
    lift = {"k_proj": 0.3, "v_proj": 0.4, "q_proj": 0.1}
    return {
        name: float(np.clip(1 - sparsity + lift.get(name.split(".")[-1], -0.02) + rng.normal(0, 0.05), 0.5, 1.0))
        for name in names
    }


def make_record(run: Run, tasks: dict[str, float], rng: np.random.Generator) -> Record:
    """Return a record whose accuracy falls with sparsity, as that of a real run does."""
    dense = {"qwen": 28.5, "gemma": 11.7, "llama": 36.0}[run.model]
    strength = (run.sparsity / 0.5) ** (3 if run.pattern == "unstructured" else 1.5)
    perplexity = dense * (1 + GROWTH.get(run.method, 0.2) * strength) * math.exp(rng.normal(0, 0.004))
    metrics = {"perplexity": {"value": perplexity, "stderr": 0.008 * perplexity, "samples": 400}}
    values = []
    for task, chance in tasks.items():
        accuracy = chance + (0.95 - chance) * 0.55 * (dense / perplexity) ** 1.4 + rng.normal(0, 0.01)
        values.append(round(200 * accuracy) / 200)
        error = math.sqrt(values[-1] * (1 - values[-1]) / 200)
        metrics[task] = {"value": values[-1], "stderr": error, "chance": chance, "samples": 200}
    metrics["accuracy"] = {"value": float(np.mean(values)), "stderr": 0.034 / math.sqrt(len(tasks))}
    seconds = {"evaluate": {"seconds": 12.3, "peak_memory_mb": 800.0}, "prune": {"seconds": 3.0, "peak_memory_mb": 512}}
    environment = {"git_commit": "0" * 40, "python": "3.11.9", "packages": {"torch": "2.5"}, "device": "cpu"}
    raw = {
        "schema": 1,
        "experiment": "demo",
        "run": run,
        "metrics": metrics,
        "achieved_sparsity": run.sparsity * 0.9998,
        "density": density(run.model, run.sparsity, rng) if run.pattern == "hybrid" else {},
        "config_digest": "abc",
        "stages": seconds if run.method != "dense" else {"evaluate": seconds["evaluate"]},
        "environment": environment | {"threads": 1, "time": "2026-01-01T00:00:00+00:00"},
    }
    return Record.model_validate(raw)


def make_experiment(seeds: int = 1) -> Experiment:
    """Return an experiment with the three models and a number of seeds."""
    rng = np.random.default_rng(0)
    runs = grid(MODELS, seeds)
    records = [make_record(c, PAPER_TASKS if c.model == "gemma" else TASKS, rng) for c in runs]
    return Experiment(records, MODELS, runs, load_published(ROOT / "config/published.json"))


@pytest.fixture(params=[1, 3], ids=["one-seed", "three-seeds"])
def experiment(request: pytest.FixtureRequest) -> Experiment:
    """Return an experiment with one seed, and one with three."""
    return make_experiment(request.param)


def write_curve(path: Path, steps: int, target: float | None, seed: int = 0) -> Path:
    """Write a training curve as the learning loop does; a method without tiles has no target."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(steps):
        done = step / steps
        loss = 3.4 + 0.6 * math.exp(-6 * done) + rng.normal(0, 0.06)
        density = None if target is None else target + (0.9 - target) * math.exp(-12 * done) * 0.5
        lines.append(
            {
                "step": step,
                "loss": loss - 0.5,
                "cross_entropy": loss,
                "density": 0.5 if density is None else density,
                "kept_norm": 0.8 + 0.1 * done,
                "target_density": target,
                "lr": 1e-3,
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def one_seed() -> Experiment:
    """Return an experiment with one seed, for slow tests that do not depend on seeds."""
    return make_experiment(1)


@pytest.fixture
def curves_of(tmp_path: Path) -> dict[Run, Path]:
    """Return the training curves of learned runs of one model, by run."""
    patch = {"model": "qwen", "method": "patch-joint", "pattern": "hybrid", "tile": 16}
    runs = {Run(model="qwen", method="maskllm", pattern="2:4", sparsity=0.5): None}
    runs |= {Run(**patch, sparsity=level): 1 - level for level in (0.45, 0.35, 0.25)}
    return {
        run: write_curve(tmp_path / f"{index}.jsonl", 200, target, index)
        for index, (run, target) in enumerate(runs.items())
    }
