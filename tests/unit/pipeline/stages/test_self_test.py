"""The stage and the command that compare the kernels with plain PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patch.inference.backends import check as product_check
from patch.inference.backends import unpacked
from patch.pipeline.cli.preflight import main

SETTINGS = {"version": 1, "device": "cpu"}


@pytest.fixture
def wrong_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        product_check, "backend_for", lambda *arguments: lambda packed, x: -unpacked.multiply(packed, x)
    )


def test_the_stage_writes_what_was_compared(stage: Callable, tmp_path: Path) -> None:
    done = stage("self_test", SETTINGS, report=tmp_path / "self-test.json")
    assert done.code == 0, done.error
    found: dict[str, Any] = json.loads((tmp_path / "self-test.json").read_text())
    assert set(found) == {"device", "hardware", "versions", "cases", "largest_errors", "seconds"}
    assert found["device"] == "cpu" and found["hardware"] in done.out and found["versions"]["torch"].startswith("2.")
    assert found["cases"] == 44 + 27 and 0 < found["seconds"] < 60
    modules = {name.rpartition(".")[0].rpartition(".")[0] for name in found["largest_errors"]}
    assert modules == {"patch.masks.kernels", "patch.inference.backends"}
    assert all(0 < error < 0.02 for error in found["largest_errors"].values())


@pytest.mark.usefixtures("wrong_product")
def test_the_stage_fails_with_the_kernel_the_case_and_the_error(stage: Callable, tmp_path: Path) -> None:
    done = stage("self_test", SETTINGS, report=tmp_path / "self-test.json")
    assert done.code == 2 and not (tmp_path / "self-test.json").exists()
    message = done.error.strip()
    assert message.startswith("error: self-test on ") and "\n" not in message and "<lambda> is wrong: " in message
    assert "hybrid, float32, 1 rows: the error is 2 of the largest value, and rounding explains 0.0001" in message


def test_the_command_tests_this_machine(capsys: pytest.CaptureFixture) -> None:
    assert main(["--self-test", "--device", "cpu"]) == 0
    first, *kernels = capsys.readouterr().out.splitlines()
    assert first.startswith("self-test: 71 comparisons on ") and len(kernels) >= 3


@pytest.mark.usefixtures("wrong_product")
def test_the_command_fails_for_a_wrong_kernel(capsys: pytest.CaptureFixture) -> None:
    assert main(["--self-test", "--device", "cpu"]) == 2
    assert "is wrong" in capsys.readouterr().err
