"""Snakemake itself as a SLURM job, by `profiles/slurm/controller.sh`: it is requeued and adopts its jobs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .harness import OPTIONS, SECONDS, Project
from .scenes import scene

SCRIPT = Path(__file__).parents[2] / "profiles/slurm/controller.sh"
SIZE = ("--cpus-per-task=1", "--mem=600", "--time=20")


def _profile(project: Project) -> None:
    """Write the profile `slurm` that the script names, from the options of the harness."""
    lines = []
    for option in OPTIONS.split("--")[1:]:
        name, _, value = option.strip().replace(" ", "=", 1).partition("=")
        if name == "default-resources":
            value = str(value.split())
        lines.append(f"{name}: {value or 'true'}\n")
    (project.folder / "slurm").mkdir()
    (project.folder / "slurm/profile.yaml").write_text("".join([*lines, "rerun-incomplete: true\n"]))


def _submit(project: Project, *options: str) -> str:
    """Submit the script from the project's folder and return the id of the job."""
    path = os.pathsep.join([str(Path(sys.executable).parent), project.cluster.env["PATH"]])
    exported = f"--export=ALL,PATH={path},XDG_CACHE_HOME={project.folder / 'cache'}"
    log = f"--output={project.folder / 'controller.log'}"
    return project.cluster.submit(*SIZE, exported, log, f"--chdir={project.folder}", str(SCRIPT), *options)


def _wait_for_begin(project: Project, name: str) -> None:
    project.cluster.wait_for(lambda: project.lines(name, "begin"), SECONDS, f"the begin of {name}")


def _log(project: Project) -> str:
    return (project.folder / "controller.log").read_text()


# In a job that inherits SLURM_MEM_PER_NODE from that of Snakemake, submitit's srun refuses its own SLURM_MEM_PER_CPU.
@scene(
    50,
    """
rule all:
    input: "lives.txt", "later.txt"
rule lives:
    output: "lives.txt"
    resources: mem_mb_per_cpu=500
    shell: "{PAYLOAD} {output} --until go"
rule later:
    input: "lives.txt"
    output: "later.txt"
    shell: "{PAYLOAD} {output}"
""",
)
def requeued(project: Project) -> None:
    _profile(project)
    controller = _submit(project)
    _wait_for_begin(project, "lives")
    # The signal that SLURM sends before the time limit.
    project.cluster.run("scancel", "--signal=USR1", "--batch", controller)
    project.cluster.wait_for(lambda: "Adopted" in _log(project), SECONDS, "the adoption of a job")
    project.touch("go")
    ended = ("COMPLETED", "FAILED", "CANCELLED")
    project.cluster.wait_for(lambda: project.cluster.job(controller).state in ended, SECONDS, "the end of Snakemake")
    project.seen["controller"] = project.cluster.job(controller)


def test_snakemake_is_requeued_before_its_limit_and_ends(requeued: Project) -> None:
    controller = requeued.seen["controller"]
    assert (controller.state, controller.restarts) == ("COMPLETED", 1), _log(requeued)


def test_its_jobs_run_on_and_are_adopted(requeued: Project) -> None:
    (lives,) = requeued.ids("lives")
    assert f"Adopted SLURM job {lives} of an earlier run" in _log(requeued)
    assert [line.kind for line in requeued.lines("lives")] == ["begin", "end"]
    assert [line.kind for line in requeued.lines("later")] == ["begin", "end"]
    assert len(requeued.submissions()) == 3, "Snakemake, and each job once"


@scene(
    30,
    """
rule runs:
    output: "runs.txt"
    shell: "{PAYLOAD} {output} --until never"
""",
)
def cancelled(project: Project) -> None:
    _profile(project)
    controller = _submit(project, "runs.txt")
    _wait_for_begin(project, "runs")
    project.cluster.run("scancel", "--signal=INT", "--batch", controller)
    project.cluster.wait_idle(SECONDS)
    project.seen["states"] = [project.cluster.job(controller).state, *map(_state(project), project.ids())]


def _state(project: Project):
    return lambda job: project.cluster.job(job).state


def test_an_interrupt_of_snakemakes_job_cancels_all_jobs(cancelled: Project) -> None:
    assert cancelled.seen["states"] == ["FAILED", "CANCELLED"], _log(cancelled)
    assert "Cancelling 1 SLURM jobs." in _log(cancelled)
