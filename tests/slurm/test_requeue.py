"""Jobs that are interrupted by their time limit, by preemption, by node failures and by their users."""

from __future__ import annotations

from itertools import pairwise

from .harness import SECONDS, Project
from .scenes import scene

OTHER = {"n1": "n2", "n2": "n1"}


def _begins(project: Project, name: str) -> list[int]:
    return [line.step for line in project.lines(name, "begin")]


def _warn(project: Project, job: str) -> None:
    """Send the signal that SLURM sends before the time limit."""
    project.cluster.run("scancel", "--signal=USR2", job)


@scene(
    85,
    """
rule all:
    input: "long.txt", "often.txt", "stubborn.txt", "plain.txt"
rule long:
    output: "long.txt"
    resources: runtime=3, slurm_partition="short", resumable=1
    shell: "{PAYLOAD} {output} --until end-long"
rule often:
    output: "often.txt"
    resources: runtime=1, resumable=1
    shell: "{PAYLOAD} {output} --until never"
rule stubborn:
    output: "stubborn.txt"
    resources: runtime=3, slurm_partition="short", resumable=1
    shell: "{PAYLOAD} {output} --deaf --every 5 --until end-stubborn"
rule plain:
    output: "plain.txt"
    resources: runtime=1
    shell: "sleep 600"
""",
)
def limits(project: Project) -> None:
    run = project.start("--submitit-time-limits=2")
    project.cluster.wait_for(lambda: project.events("plain.txt"), SECONDS, "the start of plain")
    project.cluster.expire(*project.ids("plain"))
    project.wait_for_lines("stubborn", "begin", 2)
    project.touch("end-stubborn")
    project.wait_for_lines("long", "SIGUSR2", 2)
    project.touch("end-long")
    run.wait()


def test_a_job_longer_than_its_partition_allows_resumes_after_each_limit(limits: Project) -> None:
    lines = limits.lines("long")
    assert [line.kind for line in lines if line.kind != "begin"] == ["SIGUSR2", "SIGUSR2", "end"]
    assert all(begin.step == warned.step > 0 for warned, begin in pairwise(lines) if warned.kind == "SIGUSR2")
    assert (limits.folder / "long.txt").read_text() == f"{lines[-1].step} steps\n"
    events = [event["event"] for event in limits.events("long.txt")]
    assert events == ["start", "time limit"] * (len(events) // 2 - 1) + ["start", "end"]


def test_a_job_queued_again_is_one_job_for_slurm_and_for_snakemake(limits: Project) -> None:
    (job,) = limits.ids("long")
    assert limits.cluster.job(job).state == "COMPLETED" and limits.cluster.job(job).restarts >= 2
    assert len(limits.submissions()) == 4, "one for each rule"
    assert limits.runs[0].output.count("Submitted long") == 1
    assert limits.runs[0].output.count("(Rule: long)") == 1
    assert limits.overlaps() == []


def test_a_job_that_cannot_be_resumed_fails_at_its_limit(limits: Project) -> None:
    (job,) = limits.ids("plain")
    assert limits.cluster.job(job).state == "TIMEOUT"
    where = limits.cluster.node_of(job)
    assert f"SLURM job {job}: its time limit was reached on {where}; raise `runtime`" in limits.runs[0].output
    assert limits.runs[0].code == 1


def test_a_job_that_reaches_more_limits_than_it_may_fails(limits: Project) -> None:
    (job,) = limits.ids("often")
    said = f"SLURM job {job}: its time limit was reached 2 times; the job is not queued again"
    assert said in limits.runs[0].output
    assert limits.cluster.job(job).restarts == 1


def test_a_job_that_does_not_exit_is_killed_in_time_and_resumes_from_its_own_checkpoint(limits: Project) -> None:
    (job,) = limits.ids("stubborn")
    first, second = _begins(limits, "stubborn")
    assert first == 0 and second > 0 and second % 5 == 0
    assert limits.cluster.job(job).state == "COMPLETED" and limits.cluster.job(job).restarts >= 1
    assert (limits.folder / "stubborn.txt").exists()
    printed = next(limits.folder.glob(f".snakemake/submitit/*/{job}_0_log.out")).read_text()
    assert "the job did not exit in time and is killed" in printed


@scene(
    45,
    """
rule all:
    input: "moved.txt", "done.txt", "warned.txt", "leaving.txt"
rule moved:
    output: "moved.txt"
    resources: slurm_extra="--nodelist=n1"
    shell: "{PAYLOAD} {output} --until end-moved"
rule done:
    output: "done.txt"
    resources: slurm_extra="--nodelist=n2"
    shell: "{PAYLOAD} {output}"
rule warned:
    output: "warned.txt"
    resources: resumable=1, slurm_extra="--nodelist=n2"
    shell: "{PAYLOAD} {output} --until never --linger 4"
rule leaving:
    output: "leaving.txt"
    resources: resumable=1, slurm_extra="--nodelist=n2"
    shell: "{PAYLOAD} {output} --until never"
""",
)
def interruptions(project: Project) -> None:
    cluster = project.cluster
    run = project.start()
    project.wait_for_lines("moved", "begin")
    _preempt(project, 1)
    project.wait_for_lines("warned", "begin")
    (warned,) = project.ids("warned")
    _warn(project, warned)
    project.wait_for_lines("warned", "SIGUSR2")
    cluster.run("scancel", warned)
    run.wait_for(r"\(Rule: done\)")
    (done,) = project.ids("done")
    project.seen["stamp"] = (project.folder / "done.txt").stat().st_mtime_ns
    cluster.run("scontrol", "requeue", done)
    project.wait_for_lines("leaving", "begin")
    _scancel_while_it_cannot_requeue(project, *project.ids("leaving"))
    project.wait_for_lines("moved", "begin", 2)
    _preempt(project, 2)
    project.wait_for_lines("moved", "begin", 3)
    again = (1, "COMPLETED")
    cluster.wait_for(lambda: (cluster.job(done).restarts, cluster.job(done).state) == again, SECONDS, "done again")
    project.touch("end-moved")
    run.wait()


def _preempt(project: Project, times: int) -> None:
    (job,) = project.ids("moved")
    urgent = ["--partition=high", "--nodelist=n1", "--exclusive", "--mem=0", "--output=/dev/null", "--wrap=true"]
    project.cluster.submit(*urgent)
    project.cluster.wait_for(lambda: project.cluster.job(job).restarts == times, SECONDS, f"preemption {times}")


def _scancel_while_it_cannot_requeue(project: Project, job: str) -> None:
    project.cluster.fail("scontrol", "Unable to contact slurm controller (connect failure)")
    _warn(project, job)
    log = next(project.folder.glob(f".snakemake/submitit/*/{job}_0_log.out"))
    project.cluster.wait_for(lambda: "scontrol requeue: Unable" in log.read_text(), SECONDS, "a try to requeue")
    project.cluster.run("scancel", job)
    project.cluster.heal("scontrol")


def test_a_job_preempted_twice_resumes_each_time(interruptions: Project) -> None:
    (job,) = interruptions.ids("moved")
    assert interruptions.cluster.job(job).state == "COMPLETED" and interruptions.cluster.job(job).restarts == 2
    ends = interruptions.lines("moved", "SIGTERM")
    assert _begins(interruptions, "moved") == [0, *(end.step for end in ends)] and len(ends) == 2
    assert (interruptions.folder / "moved.txt").exists()


def test_snakemake_sees_one_running_job_through_preemptions(interruptions: Project) -> None:
    output = interruptions.runs[0].output
    assert output.count("Submitted moved") == output.count("(Rule: moved)") == 1
    assert len(interruptions.submissions()) == 4, "one for each rule"
    assert interruptions.overlaps() == []


def test_a_job_cancelled_while_it_saves_does_not_come_back(interruptions: Project) -> None:
    _assert_cancelled(interruptions, "warned")


def test_a_job_cancelled_while_it_cannot_requeue_does_not_come_back(interruptions: Project) -> None:
    _assert_cancelled(interruptions, "leaving")


def _assert_cancelled(project: Project, rule: str) -> None:
    (job,) = project.ids(rule)
    assert project.cluster.job(job).state == "CANCELLED" and project.cluster.job(job).restarts == 0
    assert len(_begins(project, rule)) == 1
    assert f"SLURM job {job}: cancelled from outside" in project.runs[0].output


def test_a_job_requeued_after_its_success_does_not_run_again(interruptions: Project) -> None:
    assert len(_begins(interruptions, "done")) == 1
    assert (interruptions.folder / "done.txt").read_text() == "1 steps\n"
    assert (interruptions.folder / "done.txt").stat().st_mtime_ns == interruptions.seen["stamp"]
    assert "Error in rule done" not in interruptions.runs[0].output


@scene(
    65,
    """
rule all:
    input: "second.txt"
rule first:
    output: "first.txt"
    shell: "{PAYLOAD} {output} --until end-first"
rule second:
    input: "first.txt"
    output: "second.txt"
    resources: resumable=1
    shell: "{PAYLOAD} {output} --until end-second"
""",
)
def nodes(project: Project) -> None:
    cluster = project.cluster
    run = project.start()
    (first,) = project.wait_for_lines("first", "begin")
    cluster.set_node(first.node, "drain")
    project.touch("end-first")
    (second,) = project.wait_for_lines("second", "begin")
    cluster.set_node(first.node, "resume")
    cluster.set_node(second.node, "down")
    third = project.wait_for_lines("second", "begin", 2)[1]
    cluster.set_node(second.node, "resume")
    cluster.wait_for(lambda: project.saved("second") > third.step, SECONDS, "a save")
    cluster.kill_node(third.node)
    fourth = project.wait_for_lines("second", "begin", 3)[2]
    cluster.start_node(third.node)
    project.touch("end-second")
    run.wait()
    project.seen["places"] = [line.node for line in (first, second, third, fourth)]


def test_a_job_on_a_drained_node_ends_there_and_later_ones_go_elsewhere(nodes: Project) -> None:
    assert nodes.seen["places"][1] == OTHER[nodes.seen["places"][0]]
    assert [line.kind for line in nodes.lines("first")] == ["begin", "end"]


def test_a_job_on_a_node_set_down_resumes_on_the_other(nodes: Project) -> None:
    assert nodes.seen["places"][2] == OTHER[nodes.seen["places"][1]]
    stopped = nodes.lines("second", "SIGTERM")[0]
    assert _begins(nodes, "second")[1] == stopped.step


def test_a_job_on_a_node_without_power_resumes_on_the_other(nodes: Project) -> None:
    assert nodes.seen["places"][3] == OTHER[nodes.seen["places"][2]]
    assert _begins(nodes, "second")[2] > _begins(nodes, "second")[1]
    assert set(nodes.cluster.node_states().values()) == {"idle"}, "it came back"


def test_a_job_that_lost_its_node_twice_is_one_job(nodes: Project) -> None:
    (job,) = nodes.ids("second")
    assert nodes.cluster.job(job).state == "COMPLETED" and nodes.cluster.job(job).restarts == 2
    assert nodes.runs[0].code == 0 and nodes.overlaps() == []
    assert len(nodes.submissions()) == 2
