"""Jobs on several nodes, whose command runs once and starts a process on each node."""

from __future__ import annotations

from .harness import Project
from .scenes import scene

RANKS = ("rank0", "rank1")


@scene(
    55,
    """
SRUN = "srun --overlap --nodes=2 --ntasks=2 --ntasks-per-node=1"
rule all:
    input: "ranks.txt"
rule ranks:
    output: "ranks.txt"
    resources: nodes=2, tasks_per_node=1, runtime=3, slurm_partition="short", resumable=1
    shell:
        '''
        echo $SLURMD_NODENAME >> commands
        {SRUN} bash -c 'echo $SLURMD_NODENAME $SLURM_PROCID $SLURM_NTASKS' >> places
        {SRUN} bash -c 'exec {PAYLOAD} rank$SLURM_PROCID.txt --until end'
        touch {output}
        '''
""",
)
def ranks(project: Project) -> None:
    run = project.start()
    for name in RANKS:
        project.wait_for_lines(name, "SIGUSR2")
    starts = len(project.lines("rank0", "begin"))
    for name in RANKS:
        project.wait_for_lines(name, "begin", starts + 1)
    project.touch("end")
    run.wait()


# On a busy machine a start can take so long that no rank gets the warning, and the job restarts once more.


def test_the_command_of_a_job_of_two_nodes_runs_once_at_each_start(ranks: Project) -> None:
    assert ranks.runs[0].code == 0
    starts = [event for event in ranks.events("ranks.txt") if event["event"] == "start"]
    commands = (ranks.folder / "commands").read_text().split()
    assert 2 <= len(commands) <= len(starts)
    assert ranks.overlaps() == []


def test_a_command_starts_a_rank_on_each_node(ranks: Project) -> None:
    places = (ranks.folder / "places").read_text().splitlines()
    assert set(places) == {"n1 0 2", "n2 1 2"}
    assert {ranks.lines(name, "begin")[-1].node for name in RANKS} == {"n1", "n2"}


def test_the_warning_before_the_time_limit_reaches_every_rank(ranks: Project) -> None:
    for name in RANKS:
        warned, begin, end = ranks.lines(name)[-3:]
        assert (warned.kind, begin.kind, end.kind) == ("SIGUSR2", "begin", "end")
        assert begin.step == warned.step > 0


def test_a_job_of_two_nodes_is_queued_again_as_one_job(ranks: Project) -> None:
    (job,) = ranks.ids()
    assert ranks.cluster.job(job).state == "COMPLETED" and ranks.cluster.job(job).restarts >= 1
    assert len(ranks.submissions()) == 1
