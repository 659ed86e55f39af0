"""Jobs as the user sees them, especially failed ones."""

import re
from pathlib import Path

from .cluster import Cluster
from .harness import Project
from .scenes import scene

LIMIT = (
    "sbatch: error: AssocMaxSubmitJobLimit\\n"
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
)
# One job that succeeds, one after it, and one that fails.
CHAIN = """
rule all:
    input: "second.txt", "fails.txt"

rule first:
    output: "first.txt"
    shell: "{PAYLOAD} {output}"

rule second:
    input: "first.txt"
    output: "second.txt"
    shell: "{PAYLOAD} {output}"

rule fails:
    output: "fails.txt"
    log: "fails.log"
    shell: "{PAYLOAD} {output} --exit 3 2> {log}"
"""
# Twelve jobs that do not start, to test their submission.
EQUAL = """
rule all:
    input: expand("{n}.txt", n=range(12))

rule equal:
    output: "{n}.txt"
    resources: slurm_extra="--begin=now+1hour"
    shell: "{PAYLOAD} {output}"
"""
# For this process alone, files of others appear HIDDEN seconds after it first looks for them, and results are whole
# after TORN seconds, as with the cache of a network filesystem.
SLOW_FILES = """
import atexit, builtins, io, os, runpy, time

stat, real_open, hidden, looked = os.stat, io.open, set(), {}
atexit.register(lambda: print("Late:", *hidden))

def age(path):
    name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    if not name.endswith((".txt", "_result.json", ".err", ".out")):
        return float("inf")
    try:
        stat(path)
    except OSError:
        return float("inf")
    return time.monotonic() - looked.setdefault(os.path.abspath(name), time.monotonic())

def late(function):
    def call(path, *arguments, **options):
        if age(path) < HIDDEN:
            hidden.add(os.path.basename(os.fsdecode(path)))
            raise FileNotFoundError(2, "No such file or directory", os.fsdecode(path))
        return function(path, *arguments, **options)
    return call

def torn_open(path, *arguments, **options):
    file = real_open(path, *arguments, **options)
    if age(path) < TORN and os.fsdecode(path).endswith("_result.json"):
        return io.BytesIO(file.read()[:10])
    return file

os.stat, os.lstat, os.access = late(os.stat), late(os.lstat), lambda path, *mode, **options: age(path) >= HIDDEN
builtins.open = io.open = late(torn_open)
runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
"""
SHIFTED_CLOCK = """
import datetime, runpy, time

class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=SHIFT)

seconds, nanoseconds = time.time, time.time_ns
time.time, time.time_ns = lambda: seconds() + SHIFT, lambda: nanoseconds() + SHIFT * 10**9
datetime.datetime = Shifted
runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
"""


def _wrapper(project: Project, script: str) -> Path:
    path = project.folder / "wrapper.py"
    path.write_text(script)
    return path


def _refuse(project: Project, pattern: str) -> None:
    """Let sbatch refuse the scripts with a line that matches a pattern."""
    test = f"""grep -Eq -- '{pattern}' "${{@: -1}}" """
    project.shim("sbatch", f"""{test} && {{ echo -e "{LIMIT}" >&2; exit 1; }}; exec $REAL "$@" """)


def _error(project: Project, rule: str) -> str:
    """Return Snakemake's message about a rule's error."""
    found = re.findall(rf"^Error in rule {rule}:.*?(?=^\[|^Exiting)", project.runs[0].output, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, project.runs[0].output
    return found[0]


def _outputs(project: Project) -> set[str]:
    """Return the names of the existing outputs."""
    return {path.stem for path in project.folder.glob("*.txt") if not path.stem.startswith("run")}


def _environment(project: Project, name: str) -> dict[str, str]:
    """Return a job's environment, from its output."""
    return dict(line.split("=", 1) for line in (project.folder / name).read_text().splitlines() if "=" in line)


# Snakemake on the node uses up to 400 MB besides the payload's memory until SLURM measures it.
MISHAPS = """
rule all:
    input: expand("{name}.txt", name="one two three child grows greedy cancelled killed refused held gpus".split())

rule fine:
    output: "{name,one|two|three}.txt"
    shell: "{PAYLOAD} {output}"

rule fails:
    output: "fails.txt"
    log: "fails.log"
    shell: "touch {output}; {PAYLOAD} {output} --exit 3 2> {log}"

rule child:
    input: "fails.txt"
    output: "child.txt"
    shell: "{PAYLOAD} {output}"

rule grows:
    output: "grows.txt"
    shell: "{PAYLOAD} {output} --hoard 550 --pause 5"

rule greedy:
    output: "greedy.txt"
    shell: "{PAYLOAD} {output} --hoard 1050 --pause 60"

rule cancelled:
    output: "cancelled.txt"
    shell: "{PAYLOAD} {output} --until never"

# Kills the job's whole process group, so that no process can write a result.
rule killed:
    output: "killed.txt"
    shell: "kill -KILL 0"

rule refused:
    output: "refused.txt"
    shell: "{PAYLOAD} {output}"

rule held:
    output: "held.txt"
    resources: slurm_extra="--hold"
    shell: "{PAYLOAD} {output}"

rule gpus:
    output: "gpus.txt"
    resources: gpus=2
    shell: "env > {output}"
"""


@scene(snakefile=MISHAPS, seconds=45)
def mishaps(project: Project) -> None:
    _refuse(project, "job-name=refused")
    run = project.start("--submitit-oom-factor=2", "--submitit-oom-retries=1")
    run.wait_for("scontrol release")
    project.cluster.run("scontrol", "release", *project.ids("held"))
    project.wait_for_lines("cancelled", "begin")
    project.cluster.run("scancel", *project.ids("cancelled"))
    run.wait()


def test_the_message_of_a_failed_job_ends_with_its_own_log(mishaps: Project) -> None:
    message = _error(mishaps, "fails")
    (job,) = mishaps.ids("fails")
    node = mishaps.cluster.node_of(job)
    assert f"SLURM job {job}: exit code 1, on {node}.\nThe end of fails.log:\n    the payload fails with 3\n" in message


def test_jobs_continue_beside_those_that_fail(mishaps: Project) -> None:
    assert mishaps.runs[0].code == 1
    assert _outputs(mishaps) == {"one", "two", "three", "grows", "held", "gpus"}
    assert not mishaps.lines("child")
    assert not mishaps.living()


def test_a_job_out_of_memory_runs_again_with_more(mishaps: Project) -> None:
    first, second = mishaps.ids("grows")
    output = mishaps.runs[0].output
    assert f"SLURM job {first} (grows): out of memory; submitted again with 1000M of memory." in output
    assert f"Submitted grows as SLURM job {second}." in output
    assert "Error in rule grows" not in output


def test_a_job_that_never_fits_names_what_to_raise(mishaps: Project) -> None:
    first, second = mishaps.ids("greedy")
    message = _error(mishaps, "greedy")
    assert f"SLURM job {second}: out of memory with 1000M after 2 tries; raise `mem_mb`.\nThe end of /" in message
    assert "exceeded memory limit" in message


def test_a_job_cancelled_from_outside_is_reported_as_such(mishaps: Project) -> None:
    (job,) = mishaps.ids("cancelled")
    node = mishaps.cluster.node_of(job)
    assert f"SLURM job {job}: cancelled from outside on {node}." in _error(mishaps, "cancelled")
    assert len(mishaps.lines("cancelled", "begin")) == 1


def test_a_job_killed_as_a_whole_is_reported_as_such(mishaps: Project) -> None:
    (job,) = mishaps.ids("killed")
    message, node = _error(mishaps, "killed"), mishaps.cluster.node_of(job)
    assert f"SLURM job {job}: SLURM ended it: FAILED, NonZeroExitCode on {node}, with" in message
    assert "task 0: Killed" in message


def test_a_refusal_of_sbatch_fails_that_job_alone_with_its_message(mishaps: Project) -> None:
    words = LIMIT.replace("\\n", "\n")
    assert f"SLURM refused the job: {words}\n" in _error(mishaps, "refused")
    assert not mishaps.ids("refused")


def test_a_held_job_is_reported_once(mishaps: Project) -> None:
    (job,) = mishaps.ids("held")
    assert mishaps.runs[0].output.count(f"`scontrol release {job}` frees it") == 1


def test_equal_jobs_run_as_an_array(mishaps: Project) -> None:
    jobs = mishaps.ids("fine")
    assert len(jobs) == 3
    assert {job.partition("_")[0] + f"_{index}" for index, job in enumerate(jobs)} == set(jobs)
    assert [len(mishaps.lines(name, "begin")) for name in ("one", "two", "three")] == [1, 1, 1]


def test_a_job_sees_the_gpus_it_asked_for(mishaps: Project) -> None:
    assert len(_environment(mishaps, "gpus.txt")["CUDA_VISIBLE_DEVICES"].split(",")) == 2


SIZES = """
rule all:
    input: "sizes.txt", "pair.txt"

rule sizes:
    output: "sizes.txt"
    threads: 2
    resources: mem_mb=700, runtime=7, gpus=3, gpu_model="fake", slurm_partition="high", slurm_extra="--nice=5"
    shell: "env > {output}"

rule pair:
    output: "pair.txt"
    resources: nodes=2
    shell: "{PAYLOAD} {output}; srun --overlap printenv SLURMD_NODENAME > nodes.txt"
"""


@scene(snakefile=SIZES, seconds=20)
def sizes(project: Project) -> None:
    profile = project.folder / "site/config.yaml"
    profile.parent.mkdir()
    profile.write_text("submitit-gpu-request: gres\nsubmitit-prologue: export PROLOGUE=ran\n")
    project.run(env={"SNAKEMAKE_PROFILE": str(profile.parent)})


def test_resources_reach_sbatch(sizes: Project) -> None:
    assert sizes.runs[0].code == 0, sizes.runs[0].output
    (job,) = sizes.ids("sizes")
    printed = sizes.cluster.run("scontrol", "--oneliner", "show", "job", job).stdout
    wanted = "Partition=high TimeLimit=00:07:00 NumNodes=1 CPUs/Task=2 MinMemoryNode=700M TresPerNode=gres/gpu:fake:3"
    assert set(f"{wanted} Nice=5".split()) <= set(printed.split())
    environment = _environment(sizes, "sizes.txt")
    assert environment["SRUN_CPUS_PER_TASK"] == "2"
    assert len(environment["CUDA_VISIBLE_DEVICES"].split(",")) == 3


def test_the_prologue_runs_and_the_profile_stays_behind(sizes: Project) -> None:
    environment = _environment(sizes, "sizes.txt")
    assert environment["PROLOGUE"] == "ran"
    assert "SNAKEMAKE_PROFILE" not in environment


def test_a_job_of_two_nodes_runs_its_command_once(sizes: Project) -> None:
    assert len(sizes.lines("pair", "begin")) == 1
    assert not sizes.overlaps()
    assert sorted((sizes.folder / "nodes.txt").read_text().split()) == ["n1", "n2"]


def _run_at(project: Project, shift: int) -> None:
    wrapper = _wrapper(project, f"SHIFT = {shift}\n{SHIFTED_CLOCK}")
    project.run(wrapper=wrapper)
    project.run("--dry-run", "second.txt", wrapper=wrapper)


@scene(snakefile=CHAIN, seconds=35)
def slow_files(project: Project) -> None:
    project.run(wrapper=_wrapper(project, f"HIDDEN, TORN = 5, 8\n{SLOW_FILES}"))


@scene(snakefile=CHAIN, seconds=20)
def torn_results(project: Project) -> None:
    project.run("--until=first", wrapper=_wrapper(project, f"HIDDEN, TORN = 0, 1e9\n{SLOW_FILES}"))


@scene(snakefile=CHAIN, seconds=20)
def early_clock(project: Project) -> None:
    _run_at(project, -600)


@scene(snakefile=CHAIN, seconds=20)
def late_clock(project: Project) -> None:
    _run_at(project, 600)


def _assert_usual(project: Project) -> None:
    assert _outputs(project) == {"first", "second"}, project.runs[0].output
    assert [len(project.lines(rule, "begin")) for rule in ("first", "second", "fails")] == [1, 1, 1]
    assert len(project.submissions()) == 3
    assert "exit code 1, on n" in _error(project, "fails")
    assert "    the payload fails with 3\n" in _error(project, "fails")
    assert project.runs[0].code == 1


def test_files_that_show_up_late_change_nothing(slow_files: Project) -> None:
    late = slow_files.runs[0].output.partition("Late: ")[2]
    assert {"first.txt", "second.txt", *(f"{job}_0_result.json" for job in slow_files.ids())} <= set(late.split())
    _assert_usual(slow_files)


def test_a_wrong_clock_changes_nothing(early_clock: Project, late_clock: Project) -> None:
    for project, shift in ((early_clock, -600), (late_clock, 600)):
        submitted, begun = next(project.ledger())["time"], project.lines("first", "begin")[0].time
        assert abs(begun + shift - submitted) < 300
        _assert_usual(project)
        assert "Nothing to be done" in project.runs[1].output


def test_a_result_that_stays_damaged_fails_its_job(torn_results: Project) -> None:
    (job,) = torn_results.ids("first")
    message = _error(torn_results, "first")
    assert re.search(rf"SLURM job {job}: the result file \S+/{job}_0_result.json cannot be read \(.+\)", message)
    assert torn_results.runs[0].code == 1
    assert not torn_results.living()


def test_what_no_node_can_give_is_reported_before_the_first_submission(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(
        cluster,
        tmp_path / "project",
        """
        rule all:
            input: "there.txt", "partition.txt", "gpus.txt", "memory.txt", "time.txt"

        rule there:
            output: "there.txt"
            shell: "{PAYLOAD} {output}"

        rule partition:
            output: "partition.txt"
            resources: slurm_partition="lwo"
            shell: "{PAYLOAD} {output}"

        rule gpus:
            output: "gpus.txt"
            resources: gpus=5
            shell: "{PAYLOAD} {output}"

        rule memory:
            output: "memory.txt"
            threads: 3
            resources: mem_mb=4001
            shell: "{PAYLOAD} {output}"

        rule time:
            output: "time.txt"
            resources: slurm_partition="short", runtime=2
            shell: "{PAYLOAD} {output}"
        """,
    )
    run = project.run()
    assert run.code == 1
    printed = re.findall(r"^- (.*)", run.output.partition("The cluster cannot run this workflow:")[2], re.MULTILINE)
    assert sorted(printed) == [
        "rule gpus: `gpus` is 5, a node of partition low has at most 4",
        "rule memory: `mem_mb` is 4001, a node of partition low has at most 4000 MB",
        "rule memory: `threads` is 3, a node of partition low has at most 2",
        "rule partition: `slurm_partition` is 'lwo'; the cluster has high, low, short",
        "rule time: `runtime` is 2 minutes, the partition allows 1; name another in `slurm_partition`, or make the job "
        "resumable",
    ]
    assert not project.submissions()


def test_a_folder_that_others_can_write_to_is_reported_before_the_first_submission(
    cluster: Cluster, tmp_path: Path
) -> None:
    project = Project(cluster, tmp_path / "project", CHAIN)
    run = project.folder / ".snakemake/submitit/000001"
    run.mkdir(parents=True)
    for folder in (run, run.parent):
        folder.chmod(0o777)
        done = project.run()
        assert done.code == 1 and f"{folder} belongs to " in done.output and "has mode 0777; it must" in done.output
        assert "Traceback" not in done.output
        run.parent.chmod(0o700)
    assert not project.submissions() and not list(run.iterdir())


def _sizes_of_arrays(project: Project, *options: str) -> list[int]:
    """Return the number of jobs in each accepted submission of twelve equal jobs."""
    with project:
        run = project.start(*options)
        project.cluster.wait_for(lambda: len(project.ids()) == 12, 120, "twelve jobs")
        run.interrupt()
        run.wait()
    assert not project.living()
    arrays = [job.partition("_")[0] for job in project.ids()]
    return [arrays.count(array) for array in dict.fromkeys(arrays)]


def test_equal_jobs_are_submitted_at_once(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(cluster, tmp_path / "project", EQUAL)
    assert _sizes_of_arrays(project) == [12]
    assert len(project.submissions()) == 1


def test_arrays_can_be_disabled(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(cluster, tmp_path / "project", EQUAL)
    assert _sizes_of_arrays(project, "--submitit-array-from=0") == [1] * 12
    assert len(project.submissions()) == 12


def test_arrays_keep_to_the_size_that_the_cluster_allows(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(cluster, tmp_path / "project", EQUAL)
    project.shim("scontrol", '[[ $* == "show config" ]] && echo "MaxArraySize = 5" || exec $REAL "$@"')
    assert _sizes_of_arrays(project) == [5, 5, 2]


def test_an_array_refused_for_a_limit_is_taken_apart(cluster: Cluster, tmp_path: Path) -> None:
    project = Project(cluster, tmp_path / "project", EQUAL)
    _refuse(project, "--array=0-([4-9]|1.)")  # of more than four tasks
    assert _sizes_of_arrays(project) == [3, 3, 3, 3]
    assert "Error in rule" not in project.runs[0].output
