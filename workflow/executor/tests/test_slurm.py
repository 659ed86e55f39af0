"""Parsing of SLURM's output, and commands that are slow, fail or hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.slurm import FINAL, JobState, QueueWatch, SlurmError, is_transient, parse_squeue

LINE = "12_3|RUNNING|None|n1|2026-01-01T00:00:00|batch"


def test_lines_of_squeue() -> None:
    states = parse_squeue(f"{LINE}\n\n12_4|PENDING|Resources||N/A|batch\n13|CANCELLED|None|n2|N/A|(null)\n")
    assert list(states) == ["12_3", "12_4", "13"]
    assert states["12_3"] == JobState("12_3", "RUNNING", "None", "n1", "2026-01-01T00:00:00", "batch")
    assert [state.alive for state in states.values()] == [True, True, False]


@pytest.mark.parametrize(
    "text", ["", "\n\n", "CLUSTER: main\n", "12|RUNNING\n", "slurm_load_jobs error: no\n", "12|a|b|c|d"]
)
def test_other_lines_are_no_jobs(text: str) -> None:
    assert parse_squeue(text) == {}


def test_an_array_that_waits_as_a_whole_is_no_task() -> None:
    assert list(parse_squeue("123_[0-5]|PENDING|Priority||N/A|batch\n123_6|RUNNING|None|n1|N/A|batch")) == [
        "123_[0-5]",
        "123_6",
    ]


WORDS = st.text(st.characters(exclude_characters="|", exclude_categories=["C", "Z"]))


@given(st.lists(st.builds(JobState, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS), unique_by=lambda job: job.id))
def test_every_job_is_found_again(jobs: list[JobState]) -> None:
    text = "".join(f"{j.id}|{j.state}|{j.reason}|{j.node}|{j.start}|{j.comment}|more\n" for j in jobs)
    found = parse_squeue(text)
    assert {name: state.comment for name, state in found.items()} == {j.id: f"{j.comment}|more" for j in jobs}
    assert [(s.id, s.state, s.node) for s in found.values()] == [(j.id, j.state, j.node) for j in jobs]


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    parse_squeue(text)


def test_squeue_is_asked_about_all_of_it(commands: Any) -> None:
    commands.add("squeue")
    slurm.read_squeue()
    assert {"--me", "--array", "--states=all", "--noheader"} <= set(commands.calls("squeue")[0].split())
    assert "PENDING" not in FINAL and "COMPLETING" not in FINAL and "REQUEUED" not in FINAL


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("UNLIMITED", None),
        ("", None),
        ("NONE", None),
        ("00:01:00", 1),
        ("05:30", 5),
        ("1:30:00", 90),
        ("2-00:00:00", 2880),
        ("1-12:30:59", 2190),
        ("365-00:00:00", 525600),
    ],
)
def test_minutes(text: str, minutes: int | None) -> None:
    assert slurm.minutes(text) == minutes


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_minutes_are_rounded_down(days: int, hours: int, minutes: int, seconds: int) -> None:
    assert slurm.minutes(f"{days}-{hours:02}:{minutes:02}:{seconds:02}") == (24 * days + hours) * 60 + minutes


FAILED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    "words",
    [
        "Unable to contact slurm controller (connect failure)",
        "Unable to contact slurm controller (send failure)",
        "Unable to contact slurm controller (receive failure)",
        "Unable to contact slurm controller (shutdown failure)",
        "Socket timed out on send/recv operation",
        "Zero Bytes were transmitted or received",
        "Unexpected message received",
        "Transport endpoint is not connected",
        "Connection refused",
        "Connection timed out",
        "Connection reset by peer",
        "Resource temporarily unavailable",
        "Unable to create job record, try again",
        "Requested nodes are busy",
        "Rate limit exceeded, please retry momentarily",
        "Rate limit exceeded, please retry later",
        "Slurm backup controller in standby mode",
        "Controller is in standby mode, try a different controller",
        "Protocol authentication error",
    ],
)
def test_a_controller_that_is_away_or_busy_is_asked_again(words: str) -> None:
    assert is_transient(FAILED + words)


@pytest.mark.parametrize(
    "words",
    [
        'sbatch: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file or directory',
        "sbatch: error: _establish_config_source: failed to fetch config\n"
        "sbatch: fatal: Could not establish a configuration source",
        "sbatch: error: slurm_receive_msg: Socket timed out on send/recv operation\n"
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
    ],
)
def test_several_lines_of_a_controller_that_is_away(words: str) -> None:
    assert is_transient(words)


@pytest.mark.parametrize(
    "words",
    [
        "Invalid partition name specified",
        "Invalid account or account/partition combination specified",
        "Invalid qos specification",
        "Invalid QOS specification, relative QOS can only be used in a single partition per cluster.",
        "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "Requested node configuration is not available",
        "Requested partition configuration not available now",
        "Requested time limit is invalid (missing or exceeds some limit)",
        "Memory specification can not be satisfied",
        "Memory required by task is not available",
        "Invalid generic resource (gres) specification",
        "Required node not available (down, drained or reserved)",
        "Required partition not available (inactive or drain)",
        "Requested operation is presently disabled",
        "Invalid job array specification",
        "Invalid feature specification",
        "No partition specified or system default partition",
        "Node count specification invalid",
        "More processors requested than permitted",
        "User's group not permitted to use this partition",
        "Licenses currently unavailable",
        "Access/permission denied",
        "Pathname of a file, directory or other parameter too long",
        "Invalid wckey specification",
        "Unspecified error",
    ],
)
def test_a_refusal_is_not_tried_again(words: str) -> None:
    assert not is_transient(FAILED + words)


@pytest.mark.parametrize(
    "site",
    [
        "Please give an account with --account and try again.",
        "Jobs of more than 2 days have timed out too often; ask for less.",
        "The partition's timeout is 1 hour.",
        "Group munge-admins only.",
        "slurmctld will be shut down on Monday, ask for less time.",
    ],
)
def test_a_site_s_own_words_make_no_refusal_transient(site: str) -> None:
    assert not is_transient(f"sbatch: error: {site}\n{FAILED}Unspecified error")


def watch_with(commands: Any, script: str, interval: float = 0) -> QueueWatch:
    commands.add("squeue", script)
    return QueueWatch(interval)


def test_the_watch_takes_an_answer(commands: Any, until: Callable) -> None:
    watch, before = watch_with(commands, f"echo '{LINE}'"), time.monotonic()
    assert watch.states == {} and watch.asked == float("-inf")
    until(watch.poll)
    assert list(watch.states) == ["12_3"]
    assert before <= watch.asked <= time.monotonic() and watch.error == ""


def test_a_slow_answer_is_as_old_as_its_question(commands: Any, until: Callable) -> None:
    watch = watch_with(commands, "sleep 0.3")
    watch.poll()
    started = time.monotonic()
    until(watch.poll)
    assert watch.asked <= started < time.monotonic() - 0.2


def test_a_failed_call_keeps_the_last_answer(commands: Any, until: Callable) -> None:
    watch = watch_with(commands, f"[ $CALLS = 2 ] && echo 'squeue: error: no' >&2 && exit 1; echo '{LINE}'")
    until(watch.poll)
    states, asked = watch.states, watch.asked
    until(lambda: watch.poll() or watch.error != "")
    assert (watch.error, watch.states, watch.asked) == ("error: no", states, asked)
    until(watch.poll)
    assert watch.error == "" and watch.asked > asked


def test_a_failure_without_words(commands: Any, until: Callable) -> None:
    watch = watch_with(commands, "exit 3")
    until(lambda: watch.poll() or watch.error != "")
    assert watch.error == "exit code 3"


def test_no_squeue_is_an_error(commands: Any, until: Callable) -> None:
    watch = QueueWatch(0)
    until(lambda: watch.poll() or watch.error != "")
    assert "No such file or directory" in watch.error
    commands.print("squeue", LINE)
    until(watch.poll)
    assert watch.error == ""


def test_a_squeue_that_hangs_is_killed_with_its_children(
    commands: Any, monkeypatch: pytest.MonkeyPatch, until: Callable, running: Callable
) -> None:
    monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 0.3)
    watch = watch_with(commands, f"[ $CALLS = 1 ] && sleep 60 & echo $! > {commands.folder}/pid; wait; echo '{LINE}'")
    until(lambda: watch.poll() or watch.error != "")
    assert watch.error == "no answer within 0.3 s"
    child = int((commands.folder / "pid").read_text())
    until(lambda: not running(child))
    until(watch.poll)
    assert watch.error == "" and len(commands.calls("squeue")) == 2


def test_looking_at_a_squeue_that_hangs_takes_no_time(
    commands: Any, monkeypatch: pytest.MonkeyPatch, until: Callable
) -> None:
    monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 2)
    watch, started = watch_with(commands, "sleep 60"), time.monotonic()
    assert not any(watch.poll() for _ in range(100))
    assert time.monotonic() - started < 1
    until(lambda: watch.error != "" or watch.poll())


def test_squeue_is_called_once_an_interval(commands: Any, until: Callable) -> None:
    watch = watch_with(commands, "true", interval=100)
    until(watch.poll)
    assert not any(watch.poll() for _ in range(10))
    watch.hurry()
    until(watch.poll)
    assert len(commands.calls("squeue")) == 2


def test_hurry_leaves_a_call_that_is_under_way_alone(commands: Any, until: Callable) -> None:
    watch = watch_with(commands, "sleep 0.2", interval=100)
    watch.poll()
    started = time.monotonic()
    watch.hurry()
    until(lambda: watch.poll() or watch.error != "")
    assert watch.error == "" and started - 1 < watch.asked <= started
    until(watch.poll)  # and the next is due at once
    assert watch.asked > started


def test_twenty_thousand_jobs(commands: Any, until: Callable) -> None:
    commands.print("squeue", "".join(f"7_{i}|PENDING|Priority||N/A|{'b' * 40}\n" for i in range(20_000)))
    watch = QueueWatch(0)
    until(watch.poll)
    assert len(watch.states) == 20_000


def test_bytes_of_no_text(commands: Any, until: Callable) -> None:
    watch = watch_with(commands, f"echo '{LINE}' | tr b '\\377'")
    until(watch.poll)
    assert list(watch.states) == list(slurm.read_squeue()) == ["12_3"]


def test_run(commands: Any) -> None:
    commands.add("scontrol", "echo out; echo warning >&2")
    assert slurm.run(["scontrol"]) == "out\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [("echo no >&2; exit 1", "no"), ("echo no; exit 1", "no"), ("exit 4", "scontrol: exit code 4")],
)
def test_a_command_that_fails(commands: Any, script: str, words: str) -> None:
    commands.add("scontrol", script)
    with pytest.raises(SlurmError, match=f"^{words}$"):
        slurm.run(["scontrol"])


def test_a_command_that_hangs_or_is_not_there(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 0.1)
    commands.add("scontrol", "exec sleep 60")
    with pytest.raises(SlurmError, match=r"scontrol: no answer within 0\.1 s"):
        slurm.run(["scontrol"])
    with pytest.raises(SlurmError, match="sinfo: No such file or directory; is this a login node"):
        slurm.run(["sinfo"])


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace sleeping, and return the list of pauses."""
    made: list[float] = []
    monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=made.append))
    return made


def test_many_jobs_are_cancelled_in_few_calls(commands: Any, naps: list[float]) -> None:
    commands.add("scancel")
    slurm.cancel(f"7_{i}" for i in range(1201))
    assert " ".join(commands.calls("scancel")).split() == [f"7_{i}" for i in range(1201)]
    assert len(commands.calls("scancel")) == 3 and naps == []


def test_nothing_to_cancel_is_no_call(commands: Any) -> None:
    slurm.cancel([])


def test_scancel_is_tried_three_times(commands: Any, naps: list[float]) -> None:
    commands.add("scancel", "[ $CALLS -lt 3 ] && echo 'scancel: error: no contact' >&2 && exit 1; exit 0")
    slurm.cancel(["7"])
    assert commands.calls("scancel") == ["7"] * 3 and naps == [2, 2]
    commands.fail("scancel", "scancel: error: no contact")
    with pytest.raises(SlurmError, match="no contact"):
        slurm.cancel(["7"])


def test_a_job_that_is_over_is_cancelled(commands: Any, naps: list[float]) -> None:
    commands.fail("scancel", "scancel: error: Kill job error on job id 7: Invalid job id specified")
    slurm.cancel(["7"])
    assert len(commands.calls("scancel")) == 1


def test_one_job_that_is_over_hides_no_other_error(commands: Any, naps: list[float]) -> None:
    words = "Unable to contact slurm controller (connect failure)"
    lines = ["Kill job error on job id 7: Invalid job id specified", f"Kill job error on job id 8: {words}"]
    commands.fail("scancel", "\n".join(f"scancel: error: {line}" for line in lines))
    with pytest.raises(SlurmError, match="connect failure"):
        slurm.cancel(["7", "8"])


def test_sacct(commands: Any) -> None:
    assert slurm.read_sacct("7") == ""  # there is no sacct
    commands.print("sacct", "CANCELLED by 1000\n")
    assert slurm.read_sacct("8_1") == "CANCELLED" and commands.calls("sacct") == ["-X -n -P -o State -j 8_1"]
    commands.print("sacct", "\n")
    assert slurm.read_sacct("7") == ""
    commands.fail("sacct", "sacct: error: Slurm accounting storage is disabled")
    assert slurm.read_sacct("7") == ""


def test_records_of_scontrol(commands: Any) -> None:
    commands.print(
        "scontrol",
        "NodeName=n1 CPUTot=64 Gres=gpu:a100:4(S:0-1) OS=Linux 6.1 #1 SMP CfgTRES=cpu=64,mem=1G Partitions=gpu,all \n"
        "NodeName=n2 CPUTot=8 Gres=(null) Partitions=all Reason=Not responding [root@2026-01-01T00:00:00]\n",
    )
    first, second = slurm.scontrol_records("node")
    assert (first["NodeName"], first["Gres"], first["Partitions"]) == ("n1", "gpu:a100:4(S:0-1)", "gpu,all")
    assert first["CfgTRES"] == "cpu=64,mem=1G" and second["CPUTot"] == "8"
    assert commands.calls("scontrol") == ["--oneliner show node"]
    commands.print("scontrol", "No nodes in the system\n")
    assert slurm.scontrol_records("node") == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("MaxArraySize            = 50\nMaxBatchRequeue = 5", 50), ("", 1001), ("MaxArraySize = 0", 1)],
)
def test_the_size_of_an_array(commands: Any, text: str, size: int) -> None:
    commands.print("scontrol", text)
    assert slurm.max_array_size() == size
