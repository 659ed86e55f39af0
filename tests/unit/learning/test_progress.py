"""Tests of the progress display, and of the numbers in a line of the training log."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from patch.learning import progress as progress_module
from patch.learning.progress import Progress, peak_memory_mb


@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "patch-tile"])
@pytest.mark.parametrize("decay", [False, True])
def test_the_terms_are_the_loss(method: str, decay: bool, run_learning: Callable) -> None:
    _, curve = run_learning(method, weight_reg=2.0, weight_reg_decay=decay)
    for line in curve:
        total = line["cross_entropy"] + line["sparsity_term"] + line["weight_term"]
        assert line["loss"] == pytest.approx(total, rel=1e-6)
        share = 1 - line["step"] / 5 if decay else 1
        assert (
            line["weight_term"] == pytest.approx(-2 * share * line["kept_norm"], rel=1e-6) and line["weight_term"] < 0
        )
        assert line["sparsity_term"] == 0 if method == "maskllm" else line["sparsity_term"] > 0


def test_a_line_has_memory_and_times(run_learning: Callable, tmp_path: Path) -> None:
    before = peak_memory_mb("cpu")
    run_learning(steps=2)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert all(before <= line["peak_memory_mb"] <= peak_memory_mb("cpu") for line in lines)
    assert 50 < before < 1e5
    for key in ("tokens_per_second", "seconds", "lr", "pattern_temperature", "tile_temperature", "target_density"):
        assert all(line[key] >= 0 for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_stays_in_its_place_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    reports: list[tuple] = []
    progress = Progress("patch-joint", 3, 6, lambda *report: reports.append(report))
    for done in (4, 5, 6):
        time.sleep(0.21)
        progress.show(done, 1 / done)
    progress.close()
    text = terminal.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    last = text.split("\r")[-1]
    assert last.startswith("patch-joint: 100%") and "6/6" in last and "loss 0.1667" in last
    assert "3/6" in text and "4/6" in text
    assert reports == [(3, 6, None), (6, 6, 0)]


def test_lines_in_a_file(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[tuple] = []
    progress = Progress("patch-joint", 0, 3, lambda *report: reports.append(report))
    progress.show(1, 1.0)
    monkeypatch.setattr(progress_module, "INTERVAL", 0)
    progress.show(2, 0.5)
    monkeypatch.setattr(progress_module, "INTERVAL", 5)
    progress.show(3, 0.25)
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["patch-joint 2/3", "loss 0.5000"],
        ["patch-joint 3/3", "loss 0.2500"],
    ]
    assert lines[-1].endswith("s/step  0 s left")
    assert [report[:2] for report in reports] == [(0, 3), (2, 3), (3, 3)]
