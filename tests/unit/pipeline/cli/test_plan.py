"""Tests of the resource plan: sums, command line and imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from patch.pipeline.cli.plan import budget, main, to_text

from ..conftest import Project

ROOT = Path(__file__).parents[4]


def test_sums(project: Project) -> None:
    graph = project.graph()
    jobs, numbers = graph.jobs, budget(graph)
    assert numbers["total"]["jobs"] == numbers["total"]["jobs_to_come"] == len(jobs)
    for name in ("stages", "models"):
        assert sum(sums["jobs"] for sums in numbers[name].values()) == len(jobs)
        hours = sum(sums["hours"] for sums in numbers[name].values())
        assert hours == pytest.approx(numbers["total"]["hours"], abs=0.1)
    assert numbers["total"]["hours"] == pytest.approx(sum(job.minutes for job in jobs) / 60, abs=0.01)
    assert numbers["total"]["longest_minutes"] == max(job.minutes for job in jobs)
    walls = {wall["gpus"]: wall["minutes"] for wall in numbers["wall"]}
    assert list(walls) == [1, 4, 8, 32, None]
    assert walls[1] == sum(job.minutes for job in jobs), "on one core, one after the other"
    assert sorted(walls.values(), reverse=True) == list(walls.values())


def test_finished_jobs_are_counted_apart(project: Project) -> None:
    before = budget(project.graph())
    project.finish(project.graph())
    done = budget(project.graph())
    assert done["total"]["jobs_to_come"] == done["total"]["hours_to_come"] == 0
    assert done["total"]["hours"] == before["total"]["hours"]
    assert {wall["minutes"] for wall in done["wall"]} == {0}
    assert f"{done['total']['jobs']} done, 0 to come" in to_text(done)


def test_text_is_aligned_and_explains_the_numbers(project: Project, capsys: pytest.CaptureFixture) -> None:
    project.write()
    assert main(["--configfile", "tiny.yaml", "--gpus", "2", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line.startswith(("stage ", "model "))]
    for head in heads:
        rows = lines[lines.index(head) : lines.index("", lines.index(head))]
        assert len({len(row) for row in rows}) == 1, "flush right"
    assert [line.split()[0] for line in lines if line.startswith(("2 ", "6 ", "unlimited "))] == ["2", "6", "unlimited"]
    assert "with a factor of 1.5" in lines[-1]
    assert "CPU-hours" in heads[0] and not any("nan" in line or "None" in line for line in lines)


def test_gpus_that_are_too_few_or_too_small(project: Project, capsys: pytest.CaptureFixture) -> None:
    resources = ["resources={device: cuda, learn_gpus: 2, learn_nodes: 2, gpu_memory_gb: 0.0001}"]
    numbers = budget(project.graph(*resources), [2, 4])
    assert [wall["minutes"] is None for wall in numbers["wall"]] == [True, False, False]
    assert len(numbers["too_large"]) == 8
    text = to_text(numbers)
    assert "-: a job needs more GPUs than that." in text and text.count("Does not fit: ") == 8
    assert numbers["stages"]["learn"]["hours"] == 6 * 4 * 10 / 60, "ten minutes at least, on twice two GPUs"
    assert numbers["stages"]["train"]["hours"] == numbers["stages"]["tokenize"]["hours"] == 0


def test_many_jobs_that_do_not_fit_are_counted(project: Project) -> None:
    numbers = budget(project.graph("resources={device: cuda, gpu_memory_gb: 0.0001}", "seeds=[0,1,2]"))
    text = to_text(numbers)
    assert text.count("Does not fit: ") == 11 and "Does not fit: 10 more (--json has all)" in text


def test_json(project: Project, capsys: pytest.CaptureFixture) -> None:
    expected = budget(project.graph())
    assert main(["--configfile", "tiny.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected))


def test_changes_are_merged_into_the_configuration(project: Project) -> None:
    experiment = project.graph("seeds=[0,1]", "evaluation={perplexity: {seqlen: 24}}").plan.experiment
    assert experiment.seeds == [0, 1]
    assert (experiment.evaluation.perplexity.seqlen, experiment.evaluation.tasks) == (24, ["cloze"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--configfile", "none.yaml"], "none.yaml: no such file"),
        (["--config", "seeds"], "name=value"),
        (["--config", "seeds=[a]"], "`seeds.0` is 'a'"),
        (["--gpus", "0"], "--gpus is 0; it must be 1 or more"),
    ],
)
def test_mistakes(options: list[str], message: str, project: Project, capsys: pytest.CaptureFixture) -> None:
    project.write()
    options = options if "--configfile" in options else ["--configfile", "tiny.yaml", *options]
    assert main(options) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and "Traceback" not in errors


def test_a_template_is_refused_before_its_expressions_are_evaluated(project: Project, tmp_path: Path) -> None:
    file, evaluated = tmp_path / "template.yaml", tmp_path / "evaluated"
    file.write_text(f"__use_yte__: true\nexperiment: ?open({str(evaluated)!r}, 'w') and 'x'\n")
    assert main(["--configfile", str(file)]) == 2
    assert not evaluated.exists()


def test_a_folder_without_the_workflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "Snakefile: no such file; start the command in the folder of the project" in capsys.readouterr().err


def test_the_demo_is_the_default_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    # Beside outputs of an earlier run, Snakemake itself imports pandas.
    for name in ("Snakefile", "workflow", "config", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    command, environment = (
        [sys.executable, "-X", "importtime", "-m", "patch", "plan"],
        os.environ | {"PYTHONPATH": ROOT},
    )
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and run.stdout.startswith("demo: "), run.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert "patch.pipeline.cli.workflow" in imported
    assert not {"torch", "transformers", "datasets", "lm_eval", "huggingface_hub", "pandas"} & imported
    assert "RuntimeWarning" not in run.stderr
