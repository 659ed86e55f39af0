"""Interrupts, kills and restarts of Snakemake: no job is lost, and none runs twice."""

from pathlib import Path

from .cluster import Cluster
from .harness import Project
from .scenes import scene


def _states(project: Project) -> dict[str, str]:
    """Return SLURM's states of all jobs of a project's cluster."""
    return {job.id: job.state for job in project.cluster.jobs()}


def _lives(pid: int) -> bool:
    """Return whether a process runs; a zombie has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def _again(project: Project, *options: str) -> None:
    """Start Snakemake again after it was killed."""
    assert project.run("--unlock", *options).code == 0
    project.start("--rerun-incomplete", *options)


INTERRUPTED = """
rule all:
    input: "runs.txt", expand("waits_{n}.txt", n=range(3))

rule runs:
    output: "runs.txt"
    shell: "{PAYLOAD} {output} --until never"

rule waits:
    output: "waits_{n}.txt"
    resources: slurm_extra="--begin=now+1hour"
    shell: "{PAYLOAD} {output}"
"""


@scene(snakefile=INTERRUPTED, seconds=10)
def interrupted(project: Project) -> None:
    run = project.start()
    project.wait_for_lines("runs", "begin")
    run.interrupt()
    run.wait(60)
    project.cluster.wait_idle()


def test_an_interrupt_cancels_all_jobs(interrupted: Project) -> None:
    assert interrupted.runs[0].code == 1
    assert "Cancelling 4 SLURM jobs." in interrupted.runs[0].output
    assert set(_states(interrupted).values()) == {"CANCELLED"}
    assert [line.kind for line in interrupted.lines("runs")] == ["begin", "SIGTERM"]


KILLED = """
rule all:
    input: "lives_0.txt", "lives_1.txt", "held.txt", "later.txt"

rule lives:
    output: "lives_{n}.txt"
    shell: "{PAYLOAD} {output} --until go"

rule held:
    output: "held.txt"
    resources: slurm_extra="--hold"
    shell: "{PAYLOAD} {output}"

rule meanwhile:
    output: "meanwhile.txt"
    shell: "{PAYLOAD} {output} --until go_on"

rule later:
    input: "meanwhile.txt"
    output: "later.txt"
    shell: "{PAYLOAD} {output}"
"""


@scene(snakefile=KILLED, seconds=25)
def killed(project: Project) -> None:
    run = project.start("--submitit-array-from=2")
    for name in ("lives_0", "lives_1", "meanwhile"):
        project.wait_for_lines(name, "begin")
    run.kill()
    project.touch("go_on")
    (meanwhile,) = project.ids("meanwhile")
    project.cluster.wait_for(lambda: project.cluster.job(meanwhile).state == "COMPLETED", 120, "the end of a job")
    _again(project)
    for job in project.ids("lives") + project.ids("held"):
        project.runs[-1].wait_for(f"Adopted SLURM job {job} of an earlier run")
    project.touch("go")
    project.cluster.run("scontrol", "release", *project.ids("held"))
    project.runs[-1].wait()


def test_live_jobs_are_adopted(killed: Project) -> None:
    assert killed.runs[-1].code == 0, killed.runs[-1].output
    assert [len(killed.ids(rule)) for rule in ("lives", "held")] == [2, 1]
    assert [len(killed.lines(name, "begin")) for name in ("lives_0", "lives_1", "held")] == [1, 1, 1]


def test_a_job_that_ended_meanwhile_does_not_run_again(killed: Project) -> None:
    assert len(killed.lines("meanwhile", "begin")) == 1
    assert len(killed.ids("meanwhile")) == 1


def test_a_job_that_was_not_submitted_before_is_submitted(killed: Project) -> None:
    assert len(killed.submissions()) == 4
    assert len(killed.lines("later", "begin")) == 1
    assert all((killed.folder / f"{name}.txt").exists() for name in ("lives_0", "lives_1", "held", "later"))
    assert not killed.overlaps()
    assert not killed.living()


KILLED_IN_SBATCH = """
rule all:
    input: "0.txt", "1.txt"

rule once:
    output: "{n}.txt"
    shell: "{PAYLOAD} {output}"
"""


@scene(snakefile=KILLED_IN_SBATCH, seconds=15)
def killed_in_sbatch(project: Project) -> None:
    struck = project.folder / "struck"
    project.shim("sbatch", f'$REAL "$@" || exit; [ -e {struck} ] || {{ touch {struck}; kill -KILL $PPID; }}')
    project.run("--submitit-array-from=2")
    _again(project, "--submitit-array-from=2")
    project.runs[-1].wait()


def test_jobs_whose_submission_was_not_recorded_are_cancelled(killed_in_sbatch: Project) -> None:
    assert [killed_in_sbatch.runs[0].code, killed_in_sbatch.runs[-1].code] == [-9, 0], killed_in_sbatch.runs[-1].output
    states = _states(killed_in_sbatch)
    recorded = {job: states.pop(job) for job in killed_in_sbatch.ids()}
    assert list(recorded.values()) == ["COMPLETED"] * 2
    assert list(states.values()) == ["CANCELLED"] * 2
    assert [len(killed_in_sbatch.lines(name)) for name in "01"] == [2, 2]


OTHER_PARAMETER = """
rule all:
    input: "a.txt"

rule a:
    output: "a.txt"
    params: how=config["how"]
    shell: "{PAYLOAD} {output} --until go {params.how}"
"""


@scene(snakefile=OTHER_PARAMETER, seconds=20)
def other_parameter(project: Project) -> None:
    # The payload ignores SIGTERM, so that it lives for seconds after scancel.
    run = project.start("--config", "how=--deaf")
    (old,) = project.wait_for_lines("a", "begin")
    run.kill()
    _again(project, "--config", "how=--every=2")
    project.runs[-1].wait_for("Submitted a as SLURM job")
    assert not _lives(old.pid)
    project.wait_for_lines("a", "begin", 2)
    project.touch("go")
    project.runs[-1].wait()


def test_a_job_of_another_parameter_ends_before_the_new_one_begins(other_parameter: Project) -> None:
    old, new = other_parameter.ids()
    output = other_parameter.runs[-1].output
    assert f"Cancelling SLURM jobs of an earlier run that write the same files: {old}" in output
    assert _states(other_parameter) == {old: "CANCELLED", new: "COMPLETED"}
    assert not other_parameter.overlaps()
    assert other_parameter.runs[-1].code == 0


TWO_AT_ONCE = """
rule all:
    input: "a.txt"

rule a:
    output: "a.txt", "early.txt"
    shell: "touch early.txt; {PAYLOAD} {output[0]} --until go"
"""


@scene(snakefile=TWO_AT_ONCE, seconds=20)
def two_at_once(project: Project) -> None:
    first = project.start()
    project.wait_for_lines("a", "begin")
    project.run("--rerun-incomplete")
    project.run("--rerun-incomplete", "--nolock")
    project.touch("go")
    first.wait()


def test_a_second_snakemake_is_refused(two_at_once: Project) -> None:
    _, locked, unlocked = two_at_once.runs
    (job,) = two_at_once.ids()
    assert "LockException" in locked.output
    assert f"Another Snakemake that still runs has SLURM jobs for the same files: {job}." in unlocked.output
    assert [locked.code, unlocked.code] == [1, 1]


def test_a_second_snakemake_leaves_the_first_alone(two_at_once: Project) -> None:
    assert two_at_once.runs[0].code == 0, two_at_once.runs[0].output
    assert [line.kind for line in two_at_once.lines("a")] == ["begin", "end"]
    assert len(two_at_once.submissions()) == 1


def test_slurm_is_left_alone_where_nothing_is_to_be_done(cluster: Cluster, tmp_path: Path) -> None:
    rule = """
        rule a:
            output: "a.txt"
            shell: "{PAYLOAD} {output}"
    """
    project = Project(cluster, tmp_path / "project", rule)
    calls = cluster.calls_log.read_text()
    assert "Job stats" in project.run("--dry-run").output
    project.touch("a.txt")
    assert "Nothing to be done" in project.run().output
    assert [run.code for run in project.runs] == [0, 0]
    assert cluster.calls_log.read_text() == calls
