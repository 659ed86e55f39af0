"""Tests of the logger with one live line, and of its estimate."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from snakemake.cli import parse_config
from snakemake.exceptions import format_exception_to_string
from snakemake.settings.types import ConfigSettings
from snakemake_logger_plugin_live.configfiles import explain
from snakemake_logger_plugin_live.estimate import Jobs

SNAKEFILE = """
rule all:
    input: "b.txt"
rule a:
    output: "a.txt"
    log: "a.log"
    shell: "sleep 1; echo the reason > {log}; test -e good; touch {output}"
rule b:
    input: "a.txt"
    output: "b.txt"
    shell: "touch {output}"
"""


def command(folder: Path, *options: str) -> list[str]:
    (folder / "Snakefile").write_text(SNAKEFILE)
    return [sys.executable, "-m", "snakemake", "--cores", "1", "--logger", "live", "--show-failed-logs", *options]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(folder, *options), cwd=folder, capture_output=True, text=True, timeout=120)


def test_outside_a_terminal_the_details_are_in_the_log_alone(tmp_path):
    (tmp_path / "good").touch()
    done = run(tmp_path)
    assert done.returncode == 0 and "3 of 3 jobs, 0:0" in done.stderr
    assert "rule a:" not in done.stderr and "failed" not in done.stderr
    (log,) = (tmp_path / ".snakemake/log").glob("*.log")
    assert "rule a:" in log.read_text() and str(log) in done.stderr
    assert "Nothing to be done" in run(tmp_path).stderr


def test_a_failed_job_is_printed_with_its_log_and_listed_at_the_end(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1
    assert "Error in rule a" in done.stderr and "the reason" in done.stderr
    *_, count, failed = done.stderr.splitlines()
    assert count.startswith("0 of 3 jobs, 0:0") and failed == "failed: a: a.log"


def test_a_dry_run_prints_what_snakemake_prints(tmp_path):
    done = run(tmp_path, "--dry-run")
    assert done.returncode == 0
    assert all(
        text in done.stdout + done.stderr for text in ("Job stats:", "rule a:", "output: b.txt", "This was a dry")
    )


def test_a_terminal_has_one_line_that_is_drawn_again(tmp_path):
    (tmp_path / "good").touch()
    reader, writer = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command(tmp_path), cwd=tmp_path, stdout=writer, stderr=writer, env=environment)
    os.close(writer)
    output = b""
    try:
        while part := os.read(reader, 4096):
            output += part
    except OSError:  # the end of a terminal on Linux
        pass
    text = output.decode()
    assert process.wait(60) == 0
    assert "0 of 3 jobs" in text and "0:01 elapsed" in text and "rule a:" not in text
    assert "\x1b[2K" in text, "no line is erased"


def test_the_estimate_knows_how_long_a_rule_takes_and_how_many_jobs_run_at_a_time():
    jobs = Jobs(totals=Counter(learn=3, evaluate=4), began=100.0)
    assert jobs.seconds_left(100.0) is None
    jobs.start(1, "learn", 100.0)
    jobs.start(2, "evaluate", 100.0)
    jobs.finish(2, 104.0)
    jobs.start(3, "evaluate", 104.0)
    jobs.finish(3, 110.0)
    jobs.finish(1, 120.0)
    jobs.start(4, "learn", 120.0)
    # 30 s of work in 25 s. Left: 15 s of the running job and 20 s of another one; two evaluations of 5 s each.
    now = 125.0
    assert jobs.done == 3
    assert jobs.seconds_left(now) == pytest.approx((15 + 20 + 2 * 5) / ((20 + 4 + 6 + 5) / 25))


def test_a_job_that_takes_longer_than_expected_or_fails_has_no_negative_time():
    jobs = Jobs(totals=Counter(a=2), began=0.0)
    jobs.start(1, "a", 0.0)
    jobs.finish(1, 1.0)
    jobs.start(2, "a", 1.0)
    assert jobs.seconds_left(9.0) == 0
    jobs.drop(2)
    assert jobs.seconds_left(10.0) == pytest.approx(1.0)
    jobs.finish(7, 11.0)  # an unknown job
    assert jobs.done == 1


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file"),
        (b"a: [0\nb: 1\n", "is not YAML: line 2: expected ',' or ']', but got ':'"),
        (b"a: 1\nb: \xff\n", "is not YAML: line 2: byte 0xff is not UTF-8"),
        (b"- a\n", "is list; expected a mapping"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(
    content: bytes | None, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text("a: 1\n")
    if content is not None:
        Path("bad.yaml").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["snakemake", "--configfile", "good.yaml", "bad.yaml", "--config", "ab=1"])
    with pytest.raises(Exception) as error:  # noqa: PT011 - Snakemake's own, of several types
        ConfigSettings(configfiles=[Path("good.yaml"), Path("bad.yaml")])
    message = explain(format_exception_to_string(error.value, {}))
    assert message and message.startswith("error: configuration bad.yaml") and fault in message
    assert "\n" not in message and capsys.readouterr().err == ""


def test_other_messages_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        parse_config(["seeds"])
    message = explain(format_exception_to_string(error.value, {}))
    assert message and message.startswith("error: --config: ") and "'seeds'" in message and "seeds=[0,1,2]" in message
    assert explain("MissingRuleException:\nNo rule to produce a") is None


def test_snakemake_prints_the_explanation_alone(tmp_path: Path) -> None:
    done = run(tmp_path, "--configfile", "none.yaml")
    hint = "several files may follow --configfile, so write targets before it"
    assert done.returncode == 1 and done.stderr == f"error: configuration none.yaml: no such file; {hint}\n"
