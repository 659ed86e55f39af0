"""Tests of a damaged log: the run resumes from its intact lines, or the message names the damaged one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patch.errors import InputError
from patch.learning.curve import read_lines
from patch.learning.loop import run_steps
from patch.pipeline.reporting.curves import read_curve

OFTEN = 1e-9
STEPS = 12
BAD_LINES = {
    "null-bytes": b"\0" * 40,
    "null-in-a-line": b'{"step": %d, "loss": 1\0}',
    "not-utf-8": b'{"step": %d, "loss": "\xff"}',
    "half": b'{"step": %d, "lo',
    "list": b"[%d]",
    "no-step": b'{"loss": 1.0}',
    "step-of-a-text": b'{"step": "%d", "loss": 1.0}',
    "step-of-a-truth": b'{"step": true, "loss": 1.0}',
    "negative-step": b'{"step": -1, "loss": 1.0}',
    "text-for-a-number": b'{"step": %d, "loss": "x"}',
    "list-for-a-number": b'{"step": %d, "loss": [1]}',
    "huge": b'{"step": %d, "loss": ' + b"9" * 400 + b"}",
    "longer-than-python-reads": b'{"step": %d, "loss": ' + b"9" * 5000 + b"}",
    "infinite": b'{"step": %d, "loss": 1e999}',
    "deep": b'{"step": %d, "loss": ' + b"[" * 5000,
    "another-step": b'{"step": 0, "loss": 1.0}',
    "two-in-one": b'{"step": %d, "loss": 1.0}{"step": %d, "loss": 1.0}',
    "same-key": b'{"step": %d, "step": 1, "loss": 1.0}',
    "empty": b"",
}


class Crash(Exception):
    """Simulated death of the process."""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that runs steps, up to a crash if asked for, and returns the curve without times."""

    def take(stop: int | None = None, folder: str = "run", every: int = 1, minutes: float = OFTEN) -> list[dict]:
        def step_fn(step: int, may_stop: Callable[[], None]) -> dict[str, float | None]:
            if step == stop:
                raise Crash
            return {"loss": 1 / (step + 1), "density": None}

        curve = tmp_path / f"{folder}.jsonl"
        run_steps(STEPS, step_fn, {}, tmp_path / folder, "me", curve, minutes, every)
        lines = [json.loads(line) for line in curve.read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    return take


def spoil(path: Path, place: int, bad: bytes) -> None:
    """Replace one line by an invalid one."""
    lines = path.read_bytes().splitlines()
    lines[place] = bad.replace(b"%d", str(json.loads(lines[place])["step"]).encode())
    path.write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("fault", BAD_LINES)
def test_a_run_resumes_from_before_a_bad_line(
    fault: str,
    every: int,
    run: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = run(folder="whole", every=every)
    with pytest.raises(Crash):
        run(stop=10, every=every)
    # Checkpoints of steps 9 and 10 are there; the line of the last logged step before 10 is bad.
    log = tmp_path / "run/log.jsonl"
    spoil(log, -1, BAD_LINES[fault])
    number = len(log.read_bytes().splitlines()) or 1
    capsys.readouterr()
    assert run(every=every) == whole
    assert "resuming at step 9\n" in capsys.readouterr().out
    assert f"log.jsonl, line {number}" in caplog.text and "is skipped" in caplog.text


@pytest.mark.parametrize("fault", BAD_LINES)
def test_a_run_that_cannot_go_on_names_the_line(fault: str, run: Callable, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(stop=10)
    spoil(tmp_path / "run/log.jsonl", 3, BAD_LINES[fault])
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "run").iterdir())
    with pytest.raises(InputError, match=r"log\.jsonl, line 4: .*remove .*run to begin anew") as error:
        run()
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("fault", BAD_LINES)
def test_lines_that_are_written_again_may_be_bad(fault: str, run: Callable, tmp_path: Path) -> None:
    whole = run(folder="whole")
    with pytest.raises(Crash):
        run(stop=10)
    with (tmp_path / "run/log.jsonl").open("ab") as file:
        file.write(BAD_LINES[fault].replace(b"%d", b"10") + b'\n{"step": 11, "loss": 1.0}\n')
    assert run() == whole


@pytest.mark.parametrize("kept", [0, 3])
def test_a_log_that_lost_its_end_is_not_gone_on_with(kept: int, run: Callable, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(stop=10)
    log = tmp_path / "run/log.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:kept]))
    with pytest.raises(InputError, match=rf"log\.jsonl, line {kept + 1}: no line of step {kept}.*begin anew"):
        run()
    log.unlink()
    with pytest.raises(InputError, match=r"log\.jsonl, line 1: no line of step 0.*begin anew"):
        run()


def test_a_finished_run_that_lost_its_last_line_does_the_step_again(run: Callable, tmp_path: Path) -> None:
    whole = run(every=3)
    assert [line["step"] for line in whole] == [0, 3, 6, 9, 11]
    spoil(tmp_path / "run/log.jsonl", -1, b"\0\0")
    assert run(every=3) == whole


@pytest.mark.parametrize("fault", BAD_LINES)
def test_a_figure_names_the_bad_line(fault: str, run: Callable, tmp_path: Path) -> None:
    run()
    spoil(tmp_path / "run.jsonl", 3, BAD_LINES[fault])
    with pytest.raises(InputError, match=r"run\.jsonl, line 4: ") as error:
        read_curve(tmp_path / "run.jsonl")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_gaps_of_a_curve_are_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"step": 0, "loss": 1.5, "density": null}\n{"step": 10, "loss": NaN, "lr": 1}\n')
    frame = read_curve(path)
    assert (
        list(frame["step"]) == [0, 10]
        and frame["density"].isna().all()
        and frame["loss"].isna().tolist() == [False, True]
    )
    assert list(frame["lr"].dropna()) == [1]
    lines, fault = read_lines(path)
    assert not fault and [line.step for line in lines] == [0, 10]
