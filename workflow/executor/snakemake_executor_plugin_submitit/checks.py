"""Checks of the cluster and the environment before the first job is submitted."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Mapping, MutableMapping

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.resources import Request


def partition_minutes() -> dict[str, int]:
    """Return the time limits in minutes by partition, without unlimited ones; the key ``""`` is the default partition.

    Raises:
        SlurmError: scontrol fails.
    """
    limits = {}
    for record in slurm.scontrol_records("partition"):
        limit = slurm.minutes(record.get("MaxTime", ""))
        if limit is not None:
            limits[record["PartitionName"]] = limit
            if record.get("Default") == "YES":
                limits[""] = limit
    return limits


def check_environment(environment: Mapping[str, str]) -> list[str]:
    """Return warnings about variables that override a job's own sbatch options."""
    names = sorted(name for name in environment if name.startswith("SBATCH_"))
    return [f"{', '.join(names)} in the environment: sbatch prefers it to the jobs' resources."] if names else []


def leave_allocation(environment: MutableMapping[str, str]) -> None:
    """Remove the variables of the SLURM job that Snakemake itself runs in, if it does.

    A job inherits the environment of sbatch, and srun in it would read sizes of Snakemake's job as its own.
    """
    if "SLURM_JOB_ID" in environment:
        for name in [name for name in environment if name.startswith("SLURM_") and name != "SLURM_CONF"]:
            del environment[name]


def check_cluster(requests: dict[str, list[Request] | str]) -> list[str]:
    """Return one line for each request that SLURM cannot satisfy.

    Args:
        requests: rule -> the requests of its jobs, or an error message.

    Raises:
        SlurmError: scontrol fails.
    """
    problems = [f"rule {rule}: {asked}" for rule, asked in requests.items() if isinstance(asked, str)]
    asked = {rule: parts for rule, parts in requests.items() if not isinstance(parts, str)}
    if not any(asked.values()):
        return problems
    partitions = {record["PartitionName"]: record for record in slurm.scontrol_records("partition")}
    nodes = slurm.scontrol_records("node")
    accounts = _accounts()
    for rule, parts in asked.items():
        for request in parts:
            problems += [f"rule {rule}: {problem}" for problem in _check(request, partitions, nodes, accounts)]
    return list(dict.fromkeys(problems))


def _check(
    request: Request, partitions: dict[str, dict[str, str]], nodes: list[dict[str, str]], accounts: set[str]
) -> list[str]:
    default = ",".join(name for name, record in partitions.items() if record.get("Default") == "YES")
    names = str(request.parameters.get("partition") or default).split(",")
    if names == [""]:
        return [f"the cluster has no default partition; give `slurm_partition`, one of {_listed(partitions)}"]
    if unknown := [name for name in names if name not in partitions]:
        return [f"`slurm_partition` is {unknown[0]!r}; the cluster has {_listed(partitions)}"]
    account = request.parameters.get("account")
    if account and accounts and account.lower() not in accounts:
        return [f"`slurm_account` is {account!r}; yours are {_listed(accounts)}"]
    inside = [node for node in nodes if set(node.get("Partitions", "").split(",")) & set(names)]
    return _check_size(request, inside, ", ".join(names)) if inside else []


def _check_size(request: Request, nodes: list[dict[str, str]], partition: str) -> list[str]:
    """Return a line for each per-node resource that exceeds every node of the partition."""
    cpus = request.parameters["cpus_per_task"] * request.parameters["ntasks_per_node"]
    memory = int(request.memory.rstrip("M") or 0) * (cpus if "mem_per_cpu" in request.parameters else 1)
    model, count = request.gpus
    largest = {
        "threads": (cpus, max(int(node.get("CPUTot", 0)) for node in nodes), ""),
        "mem_mb": (memory, max(int(node.get("RealMemory", 0)) for node in nodes), " MB"),
        "gpus": (count, max(_gpus_of(node, model) for node in nodes), f" of {model}" if model else ""),
    }
    return [
        f"`{name}` is {asked}, a node of partition {partition} has at most {there}{unit}"
        for name, (asked, there, unit) in largest.items()
        if asked > there
    ]


def _gpus_of(node: dict[str, str], model: str) -> int:
    """Return the number of GPUs of a node; the format is `gpu:a100:4(S:0-1),gpu:2`."""
    found = re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)(?=[(,]|$)", node.get("Gres", ""))
    return sum(int(count) for kind, count in found if not model or kind == model)


def _accounts() -> set[str]:
    """Return the user's accounts from the accounting database; empty without such a database."""
    if shutil.which("sacctmgr") is None:
        return set()
    try:
        text = slurm.run(["sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", "format=account"])
    except slurm.SlurmError:
        return set()
    return set(text.lower().split())


def _listed(names: set[str] | dict) -> str:
    return ", ".join(sorted(names))
