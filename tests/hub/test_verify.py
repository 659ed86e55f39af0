"""Experiments with a hub's files, which are complete once they are fetched: the rest runs without the hub."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml

from patch.pipeline.config.load import load_experiment

from .conftest import ROOT
from .server import MEMBER, serve
from .stand_ins import write_repositories

FETCH = ("fetch_corpus", "fetch_mask", "fetch_model", "fetch_tasks")
Snakemake = Callable[..., subprocess.CompletedProcess[str]]


def fetch_then_run(snakemake: Snakemake, config: Path, root: Path, *targets: str) -> None:
    """Fetch an experiment's files from a hub with its repositories, then make the targets without the hub."""
    gated = write_repositories(root, load_experiment(config))
    with serve(root) as hub:
        hub.gated = gated
        run = snakemake(
            *targets, "--configfile", str(config), "--until", *FETCH, HF_ENDPOINT=hub.endpoint, HF_TOKEN=MEMBER
        )
        assert run.returncode == 0, run.stdout + run.stderr
    run = snakemake(*targets, "--configfile", str(config), HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_verification_compares_published_masks_with_published_numbers(snakemake: Snakemake, tmp_path: Path) -> None:
    fetch_then_run(snakemake, ROOT / "config/verify.yaml", tmp_path / "repositories")
    results = tmp_path / "run/results/verify"
    rows = pd.read_csv(results / "results.csv").query("metric == 'perplexity'")
    assert list(rows["sparsity"]) == [0, 0.45, 0.35, 0.25] and list(rows["published"]) == [12.08, 14.57, 13.84, 13.47]
    # The stand-ins have few tiles, so that their sparsity is a little below that of the real masks.
    zeros = list(rows["achieved_sparsity"])
    assert zeros[0] == 0 and 0.15 < zeros[3] < zeros[2] < zeros[1] < 0.46
    # A mask that is not applied would give the dense model's perplexity.
    assert rows["value"].nunique() == 4
    page = (results / "README.md").read_text()
    assert "14.57" in page and "PATCH" in page
    assert not (results / "speedup").exists()


def test_a_hub_experiment_runs_without_the_hub(snakemake: Snakemake, tmp_path: Path) -> None:
    # Gated, in several weight files, with a mask in MaskLLM's format.
    llama = "llama-2-7b"
    config = {
        "extends": str(ROOT / "config/verify.yaml"),
        "experiment": "tiny",
        "evaluation": {"perplexity": {"seqlen": 64, "batch_size": 8}, "tasks": ["arc_easy", "mmlu_anatomy"]},
        "grid": [{"methods": ["dense", "import"], "models": [llama]}],
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    fetch_then_run(snakemake, tmp_path / "tiny.yaml", tmp_path / "repositories", "results/tiny/results.csv")
    rows = pd.read_csv(tmp_path / "run/results/tiny/results.csv")
    records = {
        path.stem: json.loads(path.read_text()) for path in (tmp_path / "run/results/tiny/records").glob("*/*.json")
    }
    assert len(records) == 2
    for record in records.values():
        assert set(record["metrics"]) == {"perplexity", "accuracy", "arc_easy", "mmlu_anatomy"}
        assert record["metrics"]["arc_easy"]["samples"] == record["metrics"]["mmlu_anatomy"]["samples"] == 8
    assert len(rows) == 8
