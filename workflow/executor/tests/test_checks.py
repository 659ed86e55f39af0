"""Checks of the cluster before the first submission, with a fake scontrol."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake_executor_plugin_submitit import checks
from snakemake_executor_plugin_submitit.checks import check_cluster, leave_allocation, partition_minutes
from snakemake_executor_plugin_submitit.resources import make_request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings
from snakemake_executor_plugin_submitit.slurm import SlurmError

PARTITIONS = """\
PartitionName=cpu AllowGroups=ALL Default=YES MaxTime=1-00:00:00 Nodes=c[1-2] State=UP
PartitionName=gpu AllowGroups=ALL Default=NO MaxTime=02:00:00 Nodes=g1 State=UP
PartitionName=old AllowGroups=ALL Default=NO MaxTime=UNLIMITED Nodes=o1 State=UP
PartitionName=empty AllowGroups=ALL Default=NO MaxTime=01:00 Nodes=(null) State=UP
"""
NODES = """\
NodeName=c1 CPUTot=16 RealMemory=64000 Gres=(null) OS=Linux 6.1 #1 SMP Partitions=cpu
NodeName=c2 CPUTot=64 RealMemory=32000 Gres=(null) OS=Linux 6.1 #1 SMP Partitions=cpu
NodeName=g1 CPUTot=32 RealMemory=128000 Gres=gpu:a100:4(S:0-1),gpu:h100:2(S:0-1),mps:400 Partitions=gpu
NodeName=o1 CPUTot=8 RealMemory=16000 Gres=gpu:2080ti:8(S:0),gpu:1080:2 Partitions=old,all
"""


@pytest.fixture
def cluster(commands: Any) -> Any:
    """Return fake commands of a cluster with four partitions."""
    (commands.folder / "partition.text").write_text(PARTITIONS)
    (commands.folder / "node.text").write_text(NODES)
    commands.add("scontrol", f"cat {commands.folder}/$3.text")
    return commands


def problems(how: str = "gpus-per-node", threads: int = 1, **resources: Any) -> list[str]:
    """Return the problems of a rule `r` with these resources."""
    return check_cluster(
        {"r": [make_request({"runtime": 1, **resources}, threads, ExecutorSettings(gpu_request=how), {})]}
    )


def test_limits_of_partitions(cluster: Any) -> None:
    assert partition_minutes() == {"cpu": 1440, "": 1440, "gpu": 120, "empty": 1}


def test_a_default_partition_without_a_limit(commands: Any) -> None:
    commands.print("scontrol", "PartitionName=a Default=YES MaxTime=UNLIMITED\nPartitionName=b MaxTime=1:00:00\n")
    assert partition_minutes() == {"b": 60}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"threads": 64, "mem_mb": 64000},
        {"slurm_partition": "cpu,gpu", "mem_mb": 128000},
        {"slurm_partition": "gpu", "gpus": 6},
        {"slurm_partition": "gpu", "gpus": "a100:4"},
        {"slurm_partition": "gpu", "gpus": 6, "nodes": 2, "how": "gpus"},
        {"slurm_partition": "gpu", "gpus": 2, "gpu_model": "h100", "how": "gres"},
        {"slurm_partition": "gpu", "threads": 8, "tasks_per_node": 4, "mem_mb_per_cpu": 4000},
        {"slurm_partition": "old", "gpus": "2080ti:8"},
        {"slurm_partition": "old", "gpus": "1080:2"},
        {"slurm_partition": "old", "gpus": 10},
        {"slurm_partition": "empty", "gpus": 100},
        {"slurm_partition": "gpu", "slurm_extra": "--gpus=a100:1,h100:1"},
        {"slurm_partition": "gpu", "slurm_extra": "--gpus"},
    ],
)
def test_what_there_is_can_be_asked_for(cluster: Any, asked: dict[str, Any]) -> None:
    assert problems(**asked) == []


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"slurm_partition": "x"}, "`slurm_partition` is 'x'; the cluster has cpu, empty, gpu, old"),
        ({"slurm_partition": "cpu,x"}, "`slurm_partition` is 'x'; the cluster has cpu, empty, gpu, old"),
        ({"threads": 65}, "`threads` is 65, a node of partition cpu has at most 64"),
        ({"threads": 33, "tasks_per_node": 2}, "`threads` is 66, a node of partition cpu has at most 64"),
        ({"mem_mb": 64001}, "`mem_mb` is 64001, a node of partition cpu has at most 64000 MB"),
        ({"mem_mb_per_cpu": 4001, "threads": 16}, "`mem_mb` is 64016, a node of partition cpu has at most 64000 MB"),
        ({"gpus": 1}, "`gpus` is 1, a node of partition cpu has at most 0"),
        ({"gpus": 7, "slurm_partition": "gpu"}, "`gpus` is 7, a node of partition gpu has at most 6"),
        (
            {"gpus": 7, "nodes": 3, "slurm_partition": "gpu", "how": "gpus"},
            "`gpus` is 7, a node of partition gpu has at most 6",
        ),
        ({"gpus": "a100:5", "slurm_partition": "gpu"}, "`gpus` is 5, a node of partition gpu has at most 4 of a100"),
        (
            {"gpus": "a100:5", "slurm_partition": "gpu", "how": "gres"},
            "`gpus` is 5, a node of partition gpu has at most 4 of a100",
        ),
        ({"gpus": "v100:1", "slurm_partition": "gpu"}, "`gpus` is 1, a node of partition gpu has at most 0 of v100"),
        ({"gpus": 11, "slurm_partition": "old"}, "`gpus` is 11, a node of partition old has at most 10"),
        (
            {"gpus": "2080ti:9", "slurm_partition": "old"},
            "`gpus` is 9, a node of partition old has at most 8 of 2080ti",
        ),
    ],
)
def test_what_there_is_not_is_named(cluster: Any, asked: dict[str, Any], problem: str) -> None:
    assert problems(**asked) == [f"rule r: {problem}"]


def test_each_problem_of_a_rule_is_named_once(cluster: Any) -> None:
    jobs = [make_request({"runtime": minutes, "mem_mb": 10**6}, 100, ExecutorSettings(), {}) for minutes in (1, 2, 3)]
    assert check_cluster({"a": jobs, "b": "`runtime` is 0", "c": []}) == [
        "rule b: `runtime` is 0",
        "rule a: `threads` is 100, a node of partition cpu has at most 64",
        "rule a: `mem_mb` is 1000000, a node of partition cpu has at most 64000 MB",
    ]


def test_no_job_is_no_question(commands: Any) -> None:
    assert check_cluster({"a": "no `runtime`", "b": []}) == ["rule a: no `runtime`"]
    assert commands.calls("scontrol") == []


def test_a_cluster_without_a_default_partition(commands: Any) -> None:
    commands.print("scontrol", PARTITIONS.replace("YES", "NO"))
    words = "the cluster has no default partition; give `slurm_partition`, one of cpu, empty, gpu, old"
    assert problems() == [f"rule r: {words}"]
    assert problems(slurm_partition="empty") == []


def test_a_controller_that_is_away_is_an_error(commands: Any) -> None:
    commands.fail("scontrol", "slurm_load_partitions: Unable to contact slurm controller (connect failure)")
    with pytest.raises(SlurmError, match="connect failure"):
        problems()
    with pytest.raises(SlurmError, match="connect failure"):
        partition_minutes()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo lab; echo team", ["rule r: `slurm_account` is 'x'; yours are lab, team"]),
        ("true", []),
        ("echo no database >&2; exit 1", []),
    ],
)
def test_accounts_are_those_of_the_database(cluster: Any, script: str, expected: list[str]) -> None:
    cluster.add("sacctmgr", script)
    assert problems(slurm_account="x") == expected
    assert problems(slurm_account="lab") == problems() == []


def test_accounts_are_known_in_any_case(cluster: Any) -> None:
    cluster.print("sacctmgr", "lab\n")
    assert problems(slurm_account="Lab") == []


def test_without_sacctmgr_every_account_may_be_right(cluster: Any) -> None:
    assert problems(slurm_account="x") == []


MODELS = st.sampled_from(["", "a100", "2080ti", "1080", "3090", "nvidia_a100-sxm4-80gb", "a100_3g.20gb"])
SOCKETS = st.sampled_from(["", "(S:0)", "(S:0-1)", "(IDX:0-3)"])


@given(st.lists(st.tuples(MODELS, st.integers(1, 16), SOCKETS), max_size=4), MODELS)
def test_gpus_of_a_node(parts: list[tuple[str, int, str]], model: str) -> None:
    gres = ",".join(["shard:16", *(":".join(filter(None, ["gpu", kind, f"{n}{where}"])) for kind, n, where in parts)])
    there = sum(n for kind, n, _ in parts if model in ("", kind))
    assert checks._gpus_of({"Gres": gres}, model) == there


def test_variables_of_snakemakes_own_job_are_not_passed_on() -> None:
    plain = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_TIME_FORMAT": "%s", "PATH": "/bin", "SBATCH_QOS": "long"}
    environment = plain.copy()
    leave_allocation(environment)
    assert environment == plain, "Snakemake runs on a login node"
    environment |= {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "1000", "SLURM_NTASKS": "1"}
    leave_allocation(environment)
    assert environment == {name: plain[name] for name in ("SLURM_CONF", "PATH", "SBATCH_QOS")}
