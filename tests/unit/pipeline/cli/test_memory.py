"""Tests of the tables of GPU memory and exchanges: the cost model's numbers, and a star where they do not fit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from patch.pipeline.cli.memory import exchange_table, main, table
from patch.pipeline.config.load import load_experiment, validate_experiment
from patch.pipeline.resources.cost import CostModel
from patch.pipeline.resources.limits import too_large
from patch.pipeline.runs.plan import Plan

ROOT = Path(__file__).parents[4]
PAPER = ROOT / "config/paper.yaml"


def test_models_that_fit_one_gpu_and_models_that_need_four() -> None:
    """Joint learning of 7B and 8B fits one GPU, and of 13B four, with gradients and moments in the host's memory."""
    head, *rows = table(load_experiment(PAPER))
    learning = [f"{method}, {count}" for method in ("joint", "tile", "proxsparse") for count in (1, 4)]
    assert head == ["model", "sparsegpt", *learning]
    assert not any("+" in cell for row in rows for cell in row[1:]), "sharded only if needed"
    offloaded = [(row[0], name) for row in rows for name, cell in zip(head[1:], row[1:], strict=True) if "o" in cell]
    assert offloaded == [(name, "joint, 1") for name in ("Llama-2-7B", "Llama-3.1-8B", "Llama-2-13B")] + [
        ("Llama-2-13B", "joint, 4")
    ]
    fits = {row[0]: ["*" not in cell for cell in row[1:]] for row in rows}
    assert fits.pop("Llama-2-13B") == [True, False, True, True, True, False, True]
    expected = [True, True, True, True, True, False, True]
    assert [fits.pop(name) for name in ("Llama-2-7B", "Llama-3.1-8B")] == 2 * [expected]
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
        runs = {row[0]: row[2] for row in table(plan.experiment)[1:]}
        assert ("*" in runs[plan.experiment.models[joint.model].title]) == star
        assert any("patch-joint" in line for line in too_large(CostModel(plan))) == star


def test_a_model_of_70b_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile learning fits 8 GPUs of 80 GB if they shard the weights, and joint learning 16 with offloading."""
    monkeypatch.chdir(ROOT)
    experiment = load_experiment("config/llama-70b.yaml")
    rows = {row[0]: dict(zip(head, row, strict=True)) for head, *_, row in [table(experiment, (8, 16, 64))]}
    cells = {name: cell.strip() for name, cell in rows["Llama-3.1-70B"].items()}
    marks = {name: cell.lstrip("0123456789") for name, cell in cells.items() if name.startswith(("joint", "tile"))}
    assert marks == dict(zip(marks, ["+o*", "+o", "+", "+", "+", "+"], strict=True)) and "*" not in cells["sparsegpt"]
    assert too_large(CostModel(Plan(experiment))) == []
    joint = Plan(load_experiment("config/llama-70b-joint.yaml"))
    assert joint.grid.processes == 16 and too_large(CostModel(joint)) == []
    for chosen, mark in ((False, "*"), (True, "+")):
        resources = experiment.resources.model_copy(update={"shard_weights": chosen})
        assert table(experiment.model_copy(update={"resources": resources}), (8,))[-1][3].strip().endswith(mark)


def test_exchanges_and_what_hides_them() -> None:
    head, *rows = exchange_table(load_experiment(PAPER))
    alone, values = (dict(zip(head, row, strict=True)) for row in rows if row[0] == "Llama-2-7B")
    # Blocks are recomputed: four bf16 weights or gradients, but three of each block's last layer.
    layer, last = 4 * 4096**2 + 3 * 4096 * 11008, 4096 * 11008
    gb = 64 * 0.75 * 2 * 32 * (4 * layer - last) / 1e9
    flops = 64 * 6 * 4096 * (32 * layer + 2 * 32000 * 4096)
    assert values["method, GPUs"] == "joint, 4" and values["GB"] == f"{gb:,.0f}"
    seconds = gb / 450, gb / 50, flops / (0.4 * 989e12 * 0.25)
    assert [values[name] for name in head[3:6]] == [f"{value:.1f}" for value in seconds]
    assert values["hidden"] == "100%, 100%"
    assert not any("tile" in row[1] for row in rows), "the weights are not sharded"
    # One GPU has the gradients and moments of six logits a group in its host's memory.
    copies = 256 + 255 + 1 + 4
    assert (alone["method, GPUs"], alone["GB"], alone["hidden"]) == ("joint, 1", "0", "-") and values[
        "host (s)"
    ] == "0.0"
    assert alone["host (s)"] == f"{copies * 4 * 1.5 * 32 * layer / 64e9:.1f}"


def test_command_line(raw_config: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw_config))
    assert main(["--configfile", str(tmp_path / "config.yaml"), "--gpus", "2", "--config", "seeds=[1]"]) == 0
    printed = capsys.readouterr().out
    assert "joint, 2" in printed and "does not fit in 80 GB" in printed
    assert main(["--gpus", "0"]) == 2
    assert "--gpus is 0; it must be 1 or more" in capsys.readouterr().err


def test_documents_have_the_numbers() -> None:
    """Compare `docs/performance.md` with the table of the paper's models."""
    text = (ROOT / "docs/performance.md").read_text().replace(" \\*", "*")
    for row in table(load_experiment(PAPER))[1:]:
        assert "| " + " | ".join(run.strip() for run in row) + " |" in text, row
