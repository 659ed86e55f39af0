"""Adoption of jobs of an earlier run, with a fake squeue and scancel."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_submitit import adoption
from snakemake_executor_plugin_submitit.adoption import EarlierJobs
from snakemake_executor_plugin_submitit.ledger import Entry, History, Ledger
from snakemake_executor_plugin_submitit.slurm import SlurmError


def entry(tag: str, *outputs: str) -> Entry:
    return Entry(tag, "rule", list(outputs), [], "", Path())


class Site:
    """A submit folder with an ended run, and a clock that sleeping advances."""

    def __init__(self, folder: Path, commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.commands = folder, commands
        self.now, self.said = 0.0, []
        monkeypatch.setattr(adoption, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.nap))
        self.old = Ledger(folder)
        commands.add("squeue")
        commands.add("scancel")

    def nap(self, seconds: float) -> None:
        self.now += seconds

    def left(self, batch: str, job: str | None, tag: str, *outputs: str) -> None:
        """Record a job of the earlier run."""
        self.old.submit(batch, [entry(tag, *outputs)])
        if job:
            self.old.accept(batch, [job])

    def lists(self, *jobs: tuple[str, str, str]) -> None:
        """Let squeue list jobs, each as id, state and comment."""
        self.commands.print("squeue", "".join(f"{job}|{state}|None|n1|N/A|{batch}\n" for job, state, batch in jobs))

    def start(self) -> EarlierJobs:
        """Start a new run and return the earlier jobs that it finds."""
        self.old._file.close()
        return EarlierJobs(Ledger(self.folder), self.said.append)

    def outcomes(self) -> dict[str, str | None]:
        return {tag: part.outcome for tag, part in History(self.folder).entries.items()}


@pytest.fixture
def site(tmp_path: Path, commands: Any, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path / "submit", commands, monkeypatch)


def test_nothing_left_is_no_question(site: Site, commands: Any) -> None:
    assert site.start().claim(entry("a", "a.out")) is None
    assert commands.calls("squeue") == []


def test_a_live_job_is_adopted_once(site: Site, commands: Any) -> None:
    site.left("one", "7_3", "a", "a.out")
    site.lists(("7_3", "RUNNING", "one"))
    found = site.start()
    assert found.claim(entry("b", "b.out")) is None
    assert found.claim(entry("a", "a.out")).id == "7_3"
    assert found.claim(entry("a", "a.out")) is None
    assert commands.calls("scancel") == site.said == [] and site.outcomes() == {"a": None}


def test_another_job_for_the_same_files_is_cancelled_and_over_first(site: Site, commands: Any) -> None:
    site.left("one", "7", "a", "x", "y")
    commands.add("squeue", "[ $CALLS -gt 3 ] || echo '7|RUNNING|None|n1|N/A|one'")
    assert site.start().claim(entry("b", "y", "z")) is None
    assert commands.calls("scancel") == ["7"] and len(commands.calls("squeue")) == 4
    assert site.said == ["Cancelling SLURM jobs of an earlier run that write the same files: 7"]


def test_a_job_that_does_not_end_is_an_error(site: Site) -> None:
    site.left("one", "7", "a", "x")
    site.lists(("7", "COMPLETING", "one"))
    with pytest.raises(SlurmError, match="do not end: 7; scancel them"):
        site.start().claim(entry("b", "x"))


def test_a_batch_that_was_never_noted_as_accepted_is_cancelled(site: Site, commands: Any) -> None:
    site.left("lost", None, "a", "x")
    rows = ("7_0|{}|None||N/A|lost", "7_1|COMPLETED|None|n1|N/A|lost", "8|RUNNING|None|n1|N/A|other")
    before, after = ("\\n".join(rows).format(state) for state in ("PENDING", "CANCELLED"))
    commands.add("squeue", f"[ $CALLS -gt 3 ] && echo '{after}' || echo '{before}'")
    assert site.start().claim(entry("a", "x")) is None
    assert len(commands.calls("squeue")) == 4
    assert site.said == ["Cancelling SLURM jobs of an earlier run that its ledger does not name: 7_0"]
    assert commands.calls("scancel") == ["7_0"] and site.outcomes() == {"a": "failed"}


def test_what_ended_meanwhile_is_noted(site: Site) -> None:
    for tag, job in (("good", "1"), ("bad", "2"), ("gone", "3")):
        site.left(tag, job, tag, tag)
    for job, code in (("1", 0), ("2", 1)):
        (site.old.run / f"{job}_0_result.json").write_text(json.dumps({"exit": code, "reason": ""}))
    site.lists(("1", "COMPLETED", "good"), ("2", "COMPLETED", "bad"))
    assert site.start().claim(entry("gone", "gone")) is None
    assert site.outcomes() == {"good": "success", "bad": "failed", "gone": "failed"}


def test_another_job_of_the_same_number_is_left_alone(site: Site, commands: Any) -> None:
    site.left("one", "7", "a", "x")
    site.lists(("7", "RUNNING", "(null)"))  # numbers began anew, or this is another cluster
    found = site.start()
    assert found.claim(entry("a", "x")) is None and found.claim(entry("b", "x")) is None
    assert commands.calls("scancel") == []


def test_a_job_of_a_snakemake_that_still_runs_is_refused(site: Site) -> None:
    site.left("one", "7", "a", "x")
    found = EarlierJobs(Ledger(site.folder), site.said.append)
    assert found.claim(entry("b", "y")) is None
    with pytest.raises(SlurmError, match="another running Snakemake has submitted it as job 7"):
        found.claim(entry("a", "x"))


def test_a_squeue_that_is_away_is_asked_again(site: Site, commands: Any) -> None:
    site.left("one", "7", "a", "x")
    commands.add("squeue", "[ $CALLS -gt 2 ] || exit 1; echo '7|RUNNING|None|n1|N/A|one'")
    assert site.start().claim(entry("a", "x")).id == "7"
    assert site.now == 15 and len(site.said) == 2
    commands.fail("squeue", "squeue: error: no contact")
    with pytest.raises(SlurmError, match="no contact"):
        site.start()
    assert site.now == 90


class Planted:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_planted_pickle_is_not_loaded(site: Site, tmp_path: Path) -> None:
    site.left("one", "7", "a", "a")
    for name in ("7_0_result.pkl", "7_0_result.json", "7_submitted.pkl"):
        (site.old.run / name).write_bytes(pickle.dumps(Planted(tmp_path / "executed")))
    assert site.start().claim(entry("a", "a")) is None
    assert not (tmp_path / "executed").exists()
    assert site.outcomes() == {"a": "failed"}


def test_jobs_that_a_damaged_ledger_does_not_name_are_cancelled_and_over_first(site: Site, commands: Any) -> None:
    site.left("lost", "7", "a", "a")
    site.left("kept", "8", "b", "b")
    (site.old.run / "7_submission.sh").write_text("#SBATCH --comment=lost\n")
    path = site.old.run / "ledger.jsonl"
    path.write_bytes(b"\0" * 99 + b"\n" + b"".join(path.read_bytes().splitlines(keepends=True)[2:]))
    rows = "7|RUNNING|None|n1|N/A|lost\\n8|RUNNING|None|n1|N/A|kept"
    commands.add("squeue", f"[ $CALLS -gt 3 ] && echo '8|RUNNING|None|n1|N/A|kept' || echo '{rows}'")
    found = site.start()
    assert commands.calls("scancel") == ["7"] and len(commands.calls("squeue")) == 4
    assert found.claim(entry("a", "a")) is None and found.claim(entry("b", "b")).id == "8"
