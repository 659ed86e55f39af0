"""Submission with a fake sbatch, squeue and scancel."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_submitit import submission
from snakemake_executor_plugin_submitit.job import ClusterJob
from snakemake_executor_plugin_submitit.ledger import Entry, History, Ledger
from snakemake_executor_plugin_submitit.resources import make_request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.submission import (
    Batch,
    ControllerUnreachable,
    SubmissionQueue,
    SubmissionRefused,
    submit,
)
from submitit.core.utils import DelayedSubmission

AWAY = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
QOS = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)"
PARTITION = (
    "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid partition"
)
TIME = "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)"
TAKE = "echo Submitted batch job 7$CALLS"


@pytest.fixture
def ledger(tmp_path: Path, commands: Any) -> Ledger:
    """Return the ledger of a run on a cluster that accepts every job, with ids 71, 72, ..."""
    commands.add("srun")
    commands.add("sbatch", TAKE)
    commands.add("squeue")
    commands.add("scancel")
    return Ledger(tmp_path / "submit")


def make_batch(ledger: Ledger, count: int = 1, prologue: tuple[str, ...] = ()) -> Batch:
    jobs = [ClusterJob(f"echo {i}", f"tag{i}", str(ledger.run / f"tag{i}_events.jsonl")) for i in range(count)]
    entries = [Entry(f"tag{i}", "rule", [f"{i}.out"], [], "", Path()) for i in range(count)]
    return Batch(
        jobs, entries, make_request({"runtime": 10, "mem_mb": 100}, 2, ExecutorSettings(), {}), "rule", list(prologue)
    )


def options(ledger: Ledger, job: str) -> set[str]:
    """Return the sbatch options in the script of a job."""
    lines = (ledger.run / f"{job}_submission.sh").read_text().splitlines()
    return {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}


def test_a_job_is_submitted(ledger: Ledger, commands: Any) -> None:
    batch = make_batch(ledger, prologue=("module load cuda", "export A=1"))
    submit(batch, ledger)
    assert len(commands.calls("sbatch")) == 1 and commands.calls("squeue") == commands.calls("scancel") == []
    assert (batch.entries[0].id, batch.entries[0].run, batch.entries[0].batch) == ("71", ledger.run, batch.id)
    assert DelayedSubmission.load(ledger.run / "71_submitted.pkl").function == batch.jobs[0]
    assert options(ledger, "71") >= {
        "--job-name=rule",
        f"--comment={batch.id}",
        "--time=10",
        "--mem=100M",
        "--cpus-per-task=2",
        "--requeue",
    }
    for option, kind in (("--error", "err"), ("--output", "out")):
        assert f"{option}={batch.entries[0].log(kind)}".replace("71_0", "%j_0") in options(ledger, "71")
    assert not [option for option in options(ledger, "71") if option.startswith(("--array", "--wckey"))]
    script = (ledger.run / "71_submission.sh").read_text()
    setup = ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK", "module load cuda", "export A=1", "srun "]
    assert sorted(script.index(line) for line in setup) == [script.index(line) for line in setup]


def test_an_array_is_one_call(ledger: Ledger, commands: Any) -> None:
    batch = make_batch(ledger, 12)
    submit(batch, ledger)
    assert len(commands.calls("sbatch")) == 1
    assert [entry.id for entry in batch.entries] == [f"71_{i}" for i in range(12)]
    assert "--array=0-11%12" in options(ledger, "71")
    assert f"--output={ledger.run}/%A_%a_0_log.out" in options(ledger, "71")
    for entry, job in zip(batch.entries, batch.jobs, strict=True):
        assert DelayedSubmission.load(ledger.run / f"{entry.id}_submitted.pkl").function == job


def test_the_ledger_knows_of_a_batch_before_sbatch_does(ledger: Ledger, commands: Any) -> None:
    commands.add("sbatch", f"cp {ledger.run}/ledger.jsonl {commands.folder}/seen; {TAKE}")
    batch = make_batch(ledger, 2)
    submit(batch, ledger)
    assert (commands.folder / "seen").read_text().count(batch.id) == 1
    entries = History(ledger.run.parent).entries
    assert {tag: (e.id, e.batch) for tag, e in entries.items()} == {
        "tag0": ("71_0", batch.id),
        "tag1": ("71_1", batch.id),
    }


def test_batches_have_names_of_their_own(ledger: Ledger) -> None:
    batch = make_batch(ledger, 5)
    left, right = batch.halves()
    assert len({batch.id, left.id, right.id}) == 3 and "|" not in batch.id
    assert left.jobs + right.jobs == batch.jobs and left.entries + right.entries == batch.entries


def test_a_refusal_has_the_words_of_sbatch_alone(ledger: Ledger, commands: Any) -> None:
    commands.fail("sbatch", f"module: loaded\n{PARTITION}\n")
    batch = make_batch(ledger)
    with pytest.raises(SubmissionRefused) as refused:
        submit(batch, ledger)
    assert str(refused.value) == PARTITION and batch.entries[0].id is None


@pytest.mark.parametrize(
    ("script", "words"),
    [("echo no >&2; exit 1", "no"), ("exit 9", "sbatch"), ("echo Hello", 'make sense of sbatch output "Hello"')],
)
def test_other_failures_have_words_too(ledger: Ledger, commands: Any, script: str, words: str) -> None:
    commands.add("sbatch", script)
    with pytest.raises(SubmissionRefused, match=words):
        submit(make_batch(ledger), ledger)


@pytest.mark.parametrize("part", ["run", "submit"])
def test_nothing_is_submitted_where_others_can_write(ledger: Ledger, commands: Any, part: str) -> None:
    folder = ledger.run if part == "run" else ledger.run.parent
    folder.chmod(0o770)
    with pytest.raises(SubmissionRefused, match=f"{folder} belongs to .* and has mode 0770; "):
        submit(make_batch(ledger), ledger)
    assert commands.calls("sbatch") == [] and not list(ledger.run.glob("*.pkl"))


def test_a_run_whose_folder_is_gone_is_not_made_again(ledger: Ledger, commands: Any) -> None:
    shutil.rmtree(ledger.run)
    with pytest.raises(SubmissionRefused, match="No such file or directory"):
        submit(make_batch(ledger), ledger)
    assert commands.calls("sbatch") == [] and not ledger.run.exists()


@pytest.mark.parametrize("count", [1, 3])
def test_a_try_that_failed_leaves_no_files(ledger: Ledger, commands: Any, count: int) -> None:
    submit(make_batch(ledger), ledger)
    files = sorted(ledger.run.iterdir())
    commands.fail("sbatch", AWAY)
    with pytest.raises(ControllerUnreachable):
        submit(make_batch(ledger, count), ledger)
    assert sorted(ledger.run.iterdir()) == files


@pytest.mark.parametrize("missing", ["sbatch", "srun"])
def test_a_command_that_is_not_there_refuses_a_job(ledger: Ledger, commands: Any, missing: str) -> None:
    (commands.folder / missing).unlink()
    with pytest.raises(SubmissionRefused, match=missing):
        submit(make_batch(ledger), ledger)


def test_a_controller_that_is_away_is_tried_later(ledger: Ledger, commands: Any) -> None:
    commands.fail("sbatch", AWAY)
    batch = make_batch(ledger, 2)
    with pytest.raises(ControllerUnreachable, match="connect failure"):
        submit(batch, ledger)
    commands.add("sbatch", TAKE)
    submit(batch, ledger)
    assert [entry.id for entry in batch.entries] == ["72_0", "72_1"]
    assert commands.calls("scancel") == []
    assert (ledger.run / "ledger.jsonl").read_text().count('"submit"') == 1


def test_what_an_unanswered_try_submitted_is_withdrawn(ledger: Ledger, commands: Any) -> None:
    commands.fail("sbatch", AWAY)
    batch = make_batch(ledger)
    with pytest.raises(ControllerUnreachable):
        submit(batch, ledger)
    states = {"5": "PENDING", "6_0": "RUNNING", "6_1": "COMPLETED"}
    lines = [f"{job}|{state}|None||N/A|{batch.id}" for job, state in states.items()]
    commands.print("squeue", "\n".join([*lines, "8|RUNNING|None||N/A|snakemake-other", "9|RUNNING|None||N/A|(null)"]))
    commands.add("sbatch", f"test -s {commands.folder}/scancel.calls || exit 1; {TAKE}")
    submit(batch, ledger)
    assert commands.calls("scancel") == ["5 6_0"]


@pytest.mark.parametrize("command", ["squeue", "scancel"])
def test_what_cannot_be_withdrawn_is_not_submitted_twice(
    ledger: Ledger, commands: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission.slurm, "time", SimpleNamespace(sleep=lambda _: None))
    commands.fail("sbatch", AWAY)
    batch = make_batch(ledger)
    with pytest.raises(ControllerUnreachable):
        submit(batch, ledger)
    commands.print("squeue", f"5|PENDING|None||N/A|{batch.id}")
    commands.fail(command, f"{command}: error: no contact")
    with pytest.raises(ControllerUnreachable, match="no contact"):
        submit(batch, ledger)
    assert len(commands.calls("sbatch")) == 1


class Cluster:
    """A `SubmissionQueue` with a fake clock, and its reports."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ledger = 0.0, ledger
        self.accepted: list[Batch] = []
        self.refused: list[tuple[Batch, str]] = []
        self.said: list[str] = []
        monkeypatch.setattr(submission, "time", SimpleNamespace(monotonic=lambda: self.now, time=time.time))
        refuse = lambda batch, words: self.refused.append((batch, words))  # noqa: E731
        self.queue = SubmissionQueue(ledger, 10, self.accepted.append, refuse, self.said.append)

    def send(self, count: int = 1) -> Batch:
        batch = make_batch(self.ledger, count)
        self.queue.send(batch)
        return batch

    def ids(self) -> list[str]:
        return [entry.id for batch in self.accepted for entry in batch.entries]


@pytest.fixture
def cluster(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(ledger, monkeypatch)


def test_an_accepted_batch_is_reported(cluster: Cluster) -> None:
    assert cluster.accepted == [cluster.send()]
    assert cluster.refused == cluster.said == cluster.queue.waiting == []


def test_a_refused_batch_is_reported(cluster: Cluster, commands: Any) -> None:
    commands.fail("sbatch", PARTITION)
    assert cluster.refused == [(cluster.send(3), PARTITION)]
    assert cluster.accepted == cluster.queue.waiting == [] and len(commands.calls("sbatch")) == 1


def test_a_batch_is_tried_again_after_growing_pauses(cluster: Cluster, commands: Any) -> None:
    commands.fail("sbatch", f"sbatch: error: a warning\n{AWAY}")
    batch = cluster.send()
    assert cluster.said == [f"{AWAY}; trying again in 5 s"]
    pauses = []
    for second in range(1, 300):
        calls, cluster.now = len(commands.calls("sbatch")), float(second)
        cluster.queue.retry()
        if len(commands.calls("sbatch")) > calls:
            pauses.append(second)
    assert pauses == [5, 15, 35, 75, 135, 195, 255]
    commands.add("sbatch", TAKE)
    cluster.now = 315
    cluster.queue.retry()
    assert cluster.accepted == [batch] and cluster.queue.waiting == [] and batch.entries[0].id is not None


def test_patience_ends(cluster: Cluster, commands: Any) -> None:
    commands.fail("sbatch", AWAY)
    batch = cluster.send()
    for second in range(0, 700, 5):
        cluster.now = float(second)
        cluster.queue.retry()
    ((refused, words),) = cluster.refused
    assert refused is batch and words == f"{AWAY}\n(tried for 10 minutes)"
    assert cluster.queue.waiting == cluster.accepted == []


def test_one_batch_asks_for_all_whether_the_controller_is_back(cluster: Cluster, commands: Any) -> None:
    commands.fail("sbatch", AWAY)
    first = cluster.send()
    second = cluster.send()
    third = cluster.send()
    assert len(commands.calls("sbatch")) == 1 and cluster.queue.waiting == [first, second, third]
    commands.add("sbatch", f"[ $CALLS = 3 ] && echo '{PARTITION}' >&2 && exit 1; {TAKE}")
    cluster.now = 5
    cluster.queue.retry()
    assert cluster.accepted == [first, third] and [batch for batch, _ in cluster.refused] == [second]


def test_an_array_beyond_a_limit_goes_in_parts(cluster: Cluster, commands: Any) -> None:
    commands.add("sbatch", f"grep -qE 'array=0-([2-9]|..)%' $1 && echo \"{QOS}\" >&2 && exit 1; {TAKE}")
    batch = cluster.send(5)
    assert cluster.refused == [] and [len(part.jobs) for part in cluster.accepted] == [2, 1, 2]
    assert cluster.ids() == [entry.id for entry in batch.entries] == ["72_0", "72_1", "74", "75_0", "75_1"]
    found = History(cluster.ledger.run.parent).entries
    assert [found[f"tag{i}"].id for i in range(5)] == cluster.ids()


def test_a_limit_that_one_job_exceeds_refuses_that_job(cluster: Cluster, commands: Any) -> None:
    commands.add("sbatch", f'[ $CALLS -gt 3 ] && echo "{QOS}" >&2 && exit 1; {TAKE}')
    for _ in range(4):
        cluster.send()
    assert len(cluster.accepted) == 3 and [words for _, words in cluster.refused] == [QOS]


def test_a_limit_of_time_takes_no_array_apart(cluster: Cluster, commands: Any) -> None:
    commands.fail("sbatch", TIME)
    assert cluster.refused == [(cluster.send(8), TIME)]
    assert len(commands.calls("sbatch")) == 1


def test_a_limit_of_the_rate_of_calls_takes_no_array_apart(cluster: Cluster, commands: Any) -> None:
    commands.fail("sbatch", "sbatch: error: Batch job submission failed: Rate limit exceeded, please retry later")
    batch = cluster.send(8)
    assert cluster.queue.waiting == [batch] and len(commands.calls("sbatch")) == 1 and cluster.refused == []
