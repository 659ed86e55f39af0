"""Tests of the GPU memory table: the cost model's numbers, and a star where they do not fit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from patch.pipeline.cli.memory import main, table
from patch.pipeline.config.load import load_experiment, validate_experiment
from patch.pipeline.resources.cost import CostModel, too_large
from patch.pipeline.runs.plan import Plan

PAPER = Path(__file__).parents[4] / "config/paper.yaml"


def test_models_that_fit_one_gpu_and_models_that_need_four() -> None:
    head, *rows = table(load_experiment(PAPER))
    assert head == ["model", "joint, 1", "joint, 4", "tile, 1", "proxsparse, 1", "proxsparse, 4"]
    fits = {row[0]: ["*" not in cell for cell in row[1:]] for row in rows}
    assert fits.pop("Llama-2-13B") == [False, False, True, False, True]
    assert [fits.pop(name) for name in ("Llama-2-7B", "Llama-3.1-8B")] == 2 * [[False, True, True, False, True]]
    assert len(fits) == 3 and all(map(all, fits.values()))


def test_every_job_of_the_paper_fits() -> None:
    assert too_large(CostModel(Plan(load_experiment(PAPER)))) == []


def test_stars_agree_with_the_plan(raw_config: dict) -> None:
    """Compare the stars with the plan's list of jobs that do not fit."""
    raw = copy.deepcopy(raw_config)
    raw["resources"] = {"device": "cuda", "gpu_memory_gb": 0.001}
    plan = Plan(validate_experiment(raw))
    joint = next(run for run in plan.grid.closure if run.method == "patch-joint")
    need = CostModel(plan).learn(joint).gpu_mem_mb / 1000
    for limit, star in ((1.01 * need, False), (0.99 * need, True)):
        raw["resources"]["gpu_memory_gb"] = limit
        plan = Plan(validate_experiment(raw))
        runs = {row[0]: row[1] for row in table(plan.experiment)[1:]}
        assert ("*" in runs[plan.experiment.models[joint.model].title]) == star
        assert any("patch-joint" in line for line in too_large(CostModel(plan))) == star


def test_command_line(raw_config: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw_config))
    assert main(["--configfile", str(tmp_path / "config.yaml"), "--gpus", "2", "--config", "seeds=[1]"]) == 0
    printed = capsys.readouterr().out
    assert "joint, 2" in printed and "does not fit in 80 GB" in printed
    assert main(["--gpus", "0"]) == 2
    assert "--gpus is 0; it must be 1 or more" in capsys.readouterr().err


def test_documents_have_the_numbers() -> None:
    """Compare `docs/performance.md` with the table of the paper's models."""
    text = (PAPER.parents[1] / "docs/performance.md").read_text().replace(" \\*", "*")
    for row in table(load_experiment(PAPER))[1:]:
        assert "| " + " | ".join(run.strip() for run in row) + " |" in text, row
