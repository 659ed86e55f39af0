"""A controller that restarts, is unreachable or slow, and lost answers."""

from __future__ import annotations

import re
import time

from .cluster import LIVE
from .harness import SECONDS, Project
from .scenes import scene

OUTAGE = 20  # seconds
AWAY = r"Unable to contact slurm controller \(connect failure\)"


def _count(pattern: str, project: Project, run: int = 0) -> int:
    return len(re.findall(pattern, project.runs[run].output))


@scene(
    75,
    """
rule all:
    input: "through.txt", "after.txt", "limited0.txt", "limited1.txt"
rule through:
    output: "through.txt"
    shell: "{PAYLOAD} {output} --until end-through"
rule before:
    output: "before.txt"
    shell: "{PAYLOAD} {output} --until end-before"
rule after:
    input: "before.txt"
    output: "after.txt"
    shell: "{PAYLOAD} {output}"
rule limited:
    output: "limited{n}.txt"
    resources: resumable=1
    shell: "{PAYLOAD} {output} --until end-limited --linger 3"
""",
)
def outage(project: Project) -> None:
    cluster = project.cluster
    run = project.start("--submitit-array-from=2")
    for name in ("through", "before", "limited0", "limited1"):
        project.wait_for_lines(name, "begin")
    cluster.stop_controller()
    cluster.start_controller()
    # The signal that SLURM sends before the time limit.
    cluster.run("scancel", "--signal=USR2", *project.ids("limited"))
    for name in ("limited0", "limited1"):
        project.wait_for_lines(name, "SIGUSR2")
    cluster.stop_controller()
    stopped = time.monotonic()
    project.touch("end-before")
    run.wait_for(r"\(Rule: before\)")
    run.wait_for("sbatch: .* trying again in")
    project.seen["collected"] = time.monotonic() - stopped
    time.sleep(max(0.0, OUTAGE - project.seen["collected"]))
    cluster.start_controller()
    for name in ("limited0", "limited1"):
        project.wait_for_lines(name, "begin", 2)
    for name in ("end-limited", "end-through"):
        project.touch(name)
    run.wait()


def test_jobs_run_on_while_the_controller_is_restarted_and_away(outage: Project) -> None:
    assert outage.runs[0].code == 0
    assert [line.kind for line in outage.lines("through")] == ["begin", "end"]
    assert outage.overlaps() == []
    assert {outage.cluster.job(job).state for job in outage.ids()} == {"COMPLETED"}
    assert len(outage.cluster.jobs()) == 5, "none was submitted twice"


def test_what_cannot_be_submitted_is_submitted_when_the_controller_is_back(outage: Project) -> None:
    assert _count(f"sbatch: error: Batch job submission failed: {AWAY}; trying again in 5 s", outage) == 1
    assert len(outage.submissions()) > 4 and len(outage.ids("after")) == 1
    assert [line.kind for line in outage.lines("after")] == ["begin", "end"]


def test_a_job_ends_while_the_controller_is_away(outage: Project) -> None:
    assert outage.seen["collected"] < OUTAGE, "its result was there before the controller was"
    assert [line.kind for line in outage.lines("before")] == ["begin", "end"]


def test_tasks_that_must_requeue_themselves_meanwhile_do_so_later(outage: Project) -> None:
    tasks = outage.ids("limited")
    assert [task.partition("_")[2] for task in tasks] == ["0", "1"]
    assert [outage.cluster.job(task).restarts for task in tasks] == [1, 1]
    for name in ("limited0", "limited1"):
        first, second = outage.lines(name, "begin")
        assert first.step == 0 and second.step == outage.lines(name, "SIGUSR2")[0].step
        assert second.time - first.time > OUTAGE


@scene(
    60,
    """
rule all:
    input: "early.txt", "late.txt"
rule early:
    output: "early.txt"
    shell: "{PAYLOAD} {output} --until end-early"
rule late:
    output: "late.txt"
    shell: "{PAYLOAD} {output} --until end-late"
""",
)
def squeue(project: Project) -> None:
    cluster = project.cluster
    run = project.start("--submitit-squeue-seconds=1", "--submitit-lost-seconds=3")
    for name in ("early", "late"):
        project.wait_for_lines(name, "begin")
    cluster.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    failing = cluster.calls("squeue") + 1
    # Long enough to lose a job that squeue does not list.
    cluster.wait_for(lambda: cluster.calls("squeue") >= failing + 6, SECONDS, "six calls that fail")
    cluster.heal("squeue")
    run.wait_for("squeue answers")
    cluster.hang("squeue", 600)
    hanging = cluster.calls("squeue") + 1
    cluster.wait_for(lambda: cluster.calls("squeue") >= hanging, SECONDS, "a call that hangs")
    project.touch("end-early")
    run.wait_for(r"\(Rule: early\)")
    project.seen["collected"] = run.output
    run.wait_for("no answer within")
    cluster.heal("squeue")
    run.wait_for("squeue answers(?s:.*)squeue answers")
    project.touch("end-late")
    run.wait()


def test_no_job_fails_while_squeue_fails_or_hangs(squeue: Project) -> None:
    assert squeue.runs[0].code == 0
    assert len(squeue.submissions()) == 2 and len(squeue.lines("late", "begin")) == 1


def test_a_result_is_collected_while_squeue_hangs(squeue: Project) -> None:
    assert "(Rule: early)" in squeue.seen["collected"] and "no answer within" not in squeue.seen["collected"]


def test_a_squeue_that_fails_or_hangs_is_reported_once_and_so_is_its_return(squeue: Project) -> None:
    messages = re.findall("^squeue.*", squeue.runs[0].output, re.MULTILINE)
    assert [re.sub(r"[\d.]+ s", "some s", line) for line in messages] == [
        "squeue: slurm_load_jobs error: Unable to contact slurm controller (connect failure) "
        "(running jobs are not affected)",
        "squeue answers.",
        "squeue: no answer within some s (running jobs are not affected)",
        "squeue answers.",
    ]


# The first answer to each script is lost.
LOSES_ANSWERS = """
[ -e lost-$(grep -c array= "$1") ] && exec $REAL "$@"
$REAL "$@" || exit
touch lost-$(grep -c array= "$1")
echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2
exit 1
"""


@scene(
    25,
    """
rule all:
    input: "single.txt", expand("many{n}.txt", n=range(3))
rule single:
    output: "single.txt"
    shell: "{PAYLOAD} {output}"
rule many:
    output: "many{n}.txt"
    shell: "{PAYLOAD} {output}"
""",
)
def lost_answers(project: Project) -> None:
    project.shim("sbatch", LOSES_ANSWERS)
    project.run()


def test_a_submission_whose_answer_is_lost_is_made_once(lost_answers: Project) -> None:
    assert lost_answers.runs[0].code == 0
    assert _count("Socket timed out on send/recv operation; trying again", lost_answers) == 2
    for name in ("single", "many0", "many1", "many2"):
        assert [line.kind for line in lost_answers.lines(name)] == ["begin", "end"]


def test_what_was_submitted_without_an_answer_is_withdrawn(lost_answers: Project) -> None:
    known = set(lost_answers.ids())
    states = [(job.name, job.id in known, job.state) for job in lost_answers.cluster.jobs()]
    assert sorted(states) == [
        *[("many", False, "CANCELLED")] * 3,
        *[("many", True, "COMPLETED")] * 3,
        ("single", False, "CANCELLED"),
        ("single", True, "COMPLETED"),
    ]


@scene(
    25,
    """
rule gate:
    output: "{name}.gate"
    localrule: True
    shell: "until [ -e open ]; do sleep 0.2; done; touch {output}"
rule never:
    input: "{name}.gate"
    output: "{name}.txt"
    shell: "{PAYLOAD} {output}"
""",
)
def gone(project: Project) -> None:
    impatient = project.start("impatient.txt", "--submitit-submit-minutes=0", "--nolock")
    patient = project.start("patient.txt", "--nolock")
    for run in (impatient, patient):
        run.wait_for("localrule gate")
    project.cluster.stop_controller()
    project.touch("open")
    impatient.wait()
    patient.wait_for("trying again in")
    interrupted = time.monotonic()
    patient.interrupt()
    patient.wait()
    project.seen["ended"] = time.monotonic() - interrupted
    project.cluster.start_controller()


def test_a_controller_that_does_not_come_back_fails_the_job_with_its_message(gone: Project) -> None:
    assert gone.runs[0].code == 1
    words = f"SLURM refused the job: sbatch: error: Batch job submission failed: {AWAY}"
    assert _count(words, gone) == 1 and _count(r"\(tried for 0 minutes\)", gone) == 1
    assert "Traceback" not in gone.runs[0].output


def test_an_interrupt_ends_the_wait_for_the_controller(gone: Project) -> None:
    assert gone.runs[1].code not in (0, None)
    assert gone.seen["ended"] < 20, "one sbatch that fails, at most"
    assert "Traceback" not in gone.runs[1].output
    assert not [job for job in gone.cluster.jobs() if job.state in LIVE]
