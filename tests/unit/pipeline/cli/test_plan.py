"""The printed plan: its sums, its command line, and what it needs to run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from patch.pipeline.cli.options import read_config
from patch.pipeline.cli.plan import budget, main, to_text
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.resources.graph import JobGraph
from patch.pipeline.runs.plan import Plan

ROOT = Path(__file__).parents[4]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw_config: dict) -> Path:
    """The tests' configuration as a file, in an empty folder that is the current one."""
    raw_config["published"] = str(ROOT / "config/published.json")
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw_config))
    monkeypatch.chdir(tmp_path)
    return path


def plan_of(path: Path, *changes: str) -> Plan:
    return Plan(validate_experiment(read_config([str(path)], changes)))


def test_sums(config: Path) -> None:
    plan = plan_of(config)
    nodes = JobGraph(plan).nodes
    numbers = budget(plan)
    assert numbers["total"]["jobs"] == numbers["total"]["jobs_to_come"] == len(nodes)
    for name in ("stages", "models"):
        assert sum(sums["jobs"] for sums in numbers[name].values()) == len(nodes)
        hours = sum(sums["hours"] for sums in numbers[name].values())
        assert hours == pytest.approx(numbers["total"]["hours"], abs=0.1)
    assert numbers["total"]["hours"] == pytest.approx(sum(n.cost.minutes for n in nodes) / 60, abs=0.01)
    assert numbers["total"]["longest_minutes"] == max(node.cost.minutes for node in nodes)
    assert list(numbers["stages"]) == [
        "fetch",
        "tokenize",
        "train",
        "statistics",
        "import",
        "prune",
        "update",
        "learn",
        "quantize",
        "evaluate",
        "speedup",
        "tabulate",
    ]
    walls = {wall["gpus"]: wall["minutes"] for wall in numbers["wall"]}
    assert list(walls) == [1, 4, 8, 32, None]
    assert walls[1] == sum(node.cost.minutes for node in nodes), "on one core, one after the other"
    assert sorted(walls.values(), reverse=True) == list(walls.values())


def test_what_is_done_is_counted_apart(config: Path) -> None:
    before = budget(plan_of(config))
    record = Path(next(n for n in JobGraph(plan_of(config)).nodes if n.rule == "evaluate").outputs[0])
    record.parent.mkdir(parents=True)
    record.touch()
    after = budget(plan_of(config))
    assert after["total"]["jobs"] == before["total"]["jobs"]
    # It was of a run whose model is needed by others, which then are made again with all that follows.
    assert after["stages"]["evaluate"]["jobs_to_come"] <= before["stages"]["evaluate"]["jobs_to_come"]
    for path in (path for node in JobGraph(plan_of(config)).nodes for path in node.outputs):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    done = budget(plan_of(config))
    assert done["total"]["jobs_to_come"] == done["total"]["hours_to_come"] == 0
    assert done["total"]["hours"] == before["total"]["hours"]
    assert {wall["minutes"] for wall in done["wall"]} == {0}
    assert f"{done['total']['jobs']} done, 0 to come" in to_text(done)


def test_text_is_aligned_and_says_what_the_numbers_are(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--configfile", str(config), "--gpus", "2", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line.startswith(("stage ", "model "))]
    for head in heads:
        rows = lines[lines.index(head) : lines.index("", lines.index(head))]
        assert len({len(row) for row in rows}) == 1, "flush right"
    assert [line.split()[0] for line in lines if line.startswith(("2 ", "6 ", "unlimited "))] == ["2", "6", "unlimited"]
    assert "limits with a factor of 1.5" in lines[-1]
    assert "CPU-hours" in heads[0] and not any("nan" in line or "None" in line for line in lines)


def test_gpus_that_are_too_few_or_too_small(config: Path, capsys: pytest.CaptureFixture) -> None:
    resources = ["resources={device: cuda, learn_gpus: 2, learn_nodes: 2, gpu_memory_gb: 0.0001}"]
    numbers = budget(plan_of(config, *resources), [2, 4])
    assert [wall["minutes"] is None for wall in numbers["wall"]] == [True, False, False]
    assert len(numbers["too_large"]) == 6
    text = to_text(numbers)
    assert "-: a job needs more GPUs than that." in text and text.count("Does not fit: ") == 6
    assert numbers["stages"]["learn"]["hours"] == 6 * 4 * 10 / 60, "ten minutes at least, on twice two GPUs"
    assert numbers["stages"]["train"]["hours"] == numbers["stages"]["tokenize"]["hours"] == 0


def test_many_jobs_that_do_not_fit_are_counted(config: Path) -> None:
    numbers = budget(plan_of(config, "resources={device: cuda, gpu_memory_gb: 0.0001}", "seeds=[0,1,2]"))
    text = to_text(numbers)
    assert text.count("Does not fit: ") == 11 and "Does not fit: 8 more (--json has all)" in text


def test_json(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--configfile", str(config), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(budget(plan_of(config))))


def test_changes_are_merged_as_snakemake_merges_them(config: Path) -> None:
    changed = read_config([str(config)], ["seeds=[0,1]", "evaluation={perplexity: {seqlen: 24}}"])
    experiment = validate_experiment(changed)
    assert experiment.seeds == [0, 1]
    assert (experiment.evaluation.perplexity.seqlen, experiment.evaluation.tasks) == (24, ["cloze"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--configfile", "none.yaml"], "configuration none.yaml: no such file"),
        (["--config", "seeds"], "name=value"),
        (["--config", "seeds=[a]"], "`seeds.0` is 'a'"),
        (["--gpus", "0"], "--gpus is 0; it must be 1 or more"),
    ],
)
def test_mistakes(options: list[str], message: str, config: Path, capsys: pytest.CaptureFixture) -> None:
    options = options if "--configfile" in options else ["--configfile", str(config), *options]
    assert main(options) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and "Traceback" not in errors


def test_the_demo_is_the_default_and_nothing_heavy_is_imported() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "patch", "plan"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and run.stdout.startswith("demo: "), run.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert "patch.pipeline.cli.options" in imported
    assert not {"torch", "transformers", "datasets", "lm_eval", "huggingface_hub", "snakemake", "pandas"} & imported
    assert "RuntimeWarning" not in run.stderr
