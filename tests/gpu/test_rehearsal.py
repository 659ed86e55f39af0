"""A rehearsal of `make gpu` on the CPU: the file of results, the page, and a second run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.environment import make_environment

from ..forked import run

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/performance.md"
BEGIN, END = "<!-- gpu: begin, written by `make gpu` -->", "<!-- gpu: end -->"
WAYS = ("dense", "joint", "joint-reference", "tile", "tile-reference")
NAMES = {
    "tests/gpu",
    *(f"layers/{shape}/{rows}" for shape in ("64x64", "128x64", "64x128") for rows in (1, 16)),
    *(f"generation/{sparsity}%/{batch}" for sparsity in (25, 35, 45, 50) for batch in (1, 2)),
    *(f"learning/tiny/{way}" for way in WAYS),
    "pretrained/grid",
}
PACKED = ("25%", "35%", "45%", "50%")


def rehearse(folder: Path, *options: str, python: Path = Path(sys.executable)) -> subprocess.CompletedProcess:
    command = [python, "-m", "benchmarks.gpu", "--rehearse", "--folder", str(folder), *options]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished rehearsal."""
    folder, before = tmp_path_factory.mktemp("gpu"), PAGE.read_bytes()
    # As on a machine of its own, the project and its plugins are not installed.
    done = rehearse(folder, python=make_environment(tmp_path_factory.mktemp("python")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert PAGE.read_bytes() == before, "a rehearsal leaves the project's page alone"
    return folder


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gpu-rehearsal.json").read_text())


def timed(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return measurement, candidate and record of all that was timed."""
    for name, entry in report(folder)["results"].items():
        for candidate, found in entry["result"]["timed"].items():
            yield name, candidate, found


def section(folder: Path) -> str:
    text = (folder / "performance.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    return text.partition(BEGIN)[2].partition(END)[0]


def test_everything_is_measured(rehearsed: Path) -> None:
    found = report(rehearsed)
    assert set(found) == {"version", "card", "results", "not_measured", "running", "seconds"}
    assert found["card"]["device"] == "cpu" and found["running"] is None and found["seconds"] > 0
    assert found["not_measured"] == {} and set(found["results"]) == NAMES
    for name, entry in found["results"].items():
        assert set(entry) == {"result", "seconds", "software"} and entry["seconds"] >= 0
        assert "torch 2." in entry["software"] and "commit " in entry["software"]
        assert set(entry["result"]) == {"timed", "values", "notes"}, name


def test_every_candidate_has_its_quantities(rehearsed: Path) -> None:
    seen: dict[str, set[str]] = {}
    for name, candidate, found in timed(rehearsed):
        seen.setdefault(name, set()).add(candidate)
        assert set(found) == {"quantities", "noisy", "rounds", "facts"} and 1 <= found["rounds"] <= 3
        for quantity, values in found["quantities"].items():
            assert 0 < values["low"] <= values["median"] <= values["high"]
            noisy = values["high"] - values["low"] > values["median"] / 5
            assert (quantity in found["noisy"]) == noisy
            assert not noisy or found["rounds"] == 3, "measured again"
    for name, candidates in seen.items():
        step, _, rest = name.partition("/")
        expected = {"layers": {"dense", *PACKED}, "generation": {"dense", rest.partition("/")[0]}}
        assert candidates == expected.get(step, {rest.rpartition("/")[2]}), name


def test_layers_have_their_limits_and_are_right(rehearsed: Path) -> None:
    limits: dict[str, list[float]] = {}
    for name, candidate, found in timed(rehearsed):
        if name.startswith("layers/"):
            assert 0 <= found["facts"]["error"] < 0.02
            assert ("limit" in found["facts"]) == (candidate != "dense")
            limits.setdefault(name, []).append(found["facts"].get("limit", 1.0))
            # PyTorch's semi-structured products need a GPU.
            notes = report(rehearsed)["results"][name]["result"]["notes"]
            assert set(notes) == {"cuSPARSELt", "CUTLASS"}
    for values in limits.values():
        assert values == sorted(values) and values[-1] > 1.7, "2:4 in bf16 takes 9 of 16 bytes"


def test_learning_has_memory_and_plan(rehearsed: Path) -> None:
    facts = {candidate: found["facts"] for name, candidate, found in timed(rehearsed) if name.startswith("learning/")}
    assert set(facts) == set(WAYS)
    assert all(("plan_mb" in found) == (way in ("joint", "tile")) for way, found in facts.items())
    assert all(found["peak_mb"] >= 0 for found in facts.values())


def test_the_workflow_has_run(rehearsed: Path) -> None:
    values = report(rehearsed)["results"]["pretrained/grid"]["result"]["values"]
    runs = {name.rpartition("/")[0] for name in values if name.endswith("/perplexity")}
    assert len(runs) == 2 and any(run.startswith("patch-joint_hybrid_0.45") for run in runs)
    assert all(values[f"{run}/perplexity"] > 1 for run in runs)


def test_the_page_has_every_number(rehearsed: Path) -> None:
    text = section(rehearsed)
    assert text.count("### Intel") + text.count("### AMD") + text.count(f"### {report(rehearsed)['card']['name']}") >= 1
    scales = {"seconds": {"layers": (4, 1e3), "learning": (4, 1)}, "speedup": {"layers": (2, 1), "generation": (2, 1)}}
    scales["tokens_per_second"] = {"generation": (1, 1)}
    for name, _, found in timed(rehearsed):
        step = name.partition("/")[0]
        for quantity, values in found["quantities"].items():
            if step in scales.get(quantity, {}):
                decimals, factor = scales[quantity][step]
                half = factor * (values["high"] - values["low"]) / 2
                dagger = " †" if quantity in found["noisy"] else ""
                assert f"{factor * values['median']:.{decimals}f} ± {half:.{decimals}f}{dagger} " in text, name
        for fact in ("limit", "layer_bytes"):
            if fact in found["facts"]:
                assert f"{found['facts'][fact]:.{2 if fact == 'limit' else 3}f} " in text
        for fact in ("peak_mb", "plan_mb"):
            if fact in found["facts"]:
                assert f" {found['facts'][fact] / 1000:.2f} " in text
    results = report(rehearsed)["results"]
    counts = results["tests/gpu"]["result"]["values"]
    assert ", ".join(f"{counts[name]:.0f} {name}" for name in ("passed", "failed", "skipped")) in text
    for name, value in results["pretrained/grid"]["result"]["values"].items():
        decimals = 3 if name.endswith("perplexity") else 1
        assert f" {value:.{decimals}f} " in text, name
    # The paper's throughput at 45 % on its A6000.
    assert " 1023.8 " in text and " 1410.2 " in text and " 1.38 " in text


def test_a_second_run_measures_what_is_missing(rehearsed: Path, tmp_path: Path) -> None:
    found = report(rehearsed)
    removed = {"layers/64x128/16", "learning/tiny/tile"}
    found["results"] = {name: entry for name, entry in found["results"].items() if name not in removed}
    for entry in found["results"].values():
        entry["software"] += ", kept"
    # A run that was cut off: this was in progress.
    found |= {"running": "learning/tiny/tile", "not_measured": {"layers/64x128/16": "no time was left"}}
    (tmp_path / "gpu-rehearsal.json").write_text(json.dumps(found))
    done = rehearse(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    again = report(tmp_path)
    assert set(again["results"]) == NAMES and again["not_measured"] == {} and again["running"] is None
    assert {name for name, entry in again["results"].items() if not entry["software"].endswith(", kept")} == removed
    assert all(again["results"][name] == entry for name, entry in found["results"].items())
    lines = [line for line in done.stdout.splitlines() if ": measured in " in line]
    assert len(lines) == 2 and all(any(name in line for line in lines) for name in removed)
    assert again["seconds"] > found["seconds"]


def test_the_own_page_is_refused(tmp_path: Path) -> None:
    def rehearse(folder: Path) -> subprocess.CompletedProcess:
        return run(["benchmarks.gpu", "--rehearse", "--folder", str(folder)], main, ROOT, os.environ)

    done = rehearse(ROOT / "docs")
    assert done.returncode == 2 and "the project's own; give another folder" in done.stderr
    assert not (ROOT / "docs/gpu-rehearsal.json").exists()
    (tmp_path / "performance.md").symlink_to(PAGE)
    done = rehearse(tmp_path)
    assert done.returncode == 2 and "the project's own" in done.stderr
    assert "No GPU has been measured." in PAGE.read_text() or "### NVIDIA" in PAGE.read_text()
