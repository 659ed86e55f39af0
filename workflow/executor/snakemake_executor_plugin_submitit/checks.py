"""Checks on the login node before the first job is submitted."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_submitit import slurm
from snakemake_executor_plugin_submitit.private import make_private
from snakemake_executor_plugin_submitit.resources import Request

# Filesystems that compute nodes cannot share.
LOCAL_FILESYSTEMS = {"tmpfs", "ramfs", "devtmpfs"}
LOCAL_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


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


def check_folder(folder: Path) -> list[str]:
    """Create the submit folder and return warnings about its location.

    Raises:
        WorkflowError: the folder cannot be created, belongs to another user, or is writable by other users.
    """
    try:
        make_private(folder)
    except OSError as error:
        raise WorkflowError(
            f"The submit folder {folder} cannot be used ({error.strerror}). It holds pickles that jobs execute and "
            "must be yours alone: name another with --submitit-folder."
        ) from None
    kind = _filesystem(folder)
    if kind in LOCAL_FILESYSTEMS or any(folder.is_relative_to(place) for place in LOCAL_FOLDERS):
        place = kind if kind in LOCAL_FILESYSTEMS else "a local folder"
        return [f"The submit folder {folder} is on {place}; compute nodes must see it."]
    return []


def check_environment(environment: Mapping[str, str]) -> list[str]:
    """Return warnings about variables that override a job's own sbatch options."""
    names = sorted(name for name in environment if name.startswith("SBATCH_"))
    return [f"{', '.join(names)} in the environment: sbatch prefers it to what jobs ask for."] if names else []


def _filesystem(folder: Path) -> str:
    """Return the type of the filesystem that holds a folder."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    fitting = [(len(place), kind) for place, kind in mounts if folder.is_relative_to(place)]
    return max(fitting)[1] if fitting else ""


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
    parameters = request.parameters
    names = str(parameters.get("partition") or "").split(",")
    if names == [""]:
        names = [name for name, record in partitions.items() if record.get("Default") == "YES"]
        if not names:
            return [f"the cluster has no default partition; give `slurm_partition`, one of {_listed(partitions)}"]
    unknown = [name for name in names if name not in partitions]
    if unknown:
        return [f"`slurm_partition` is {unknown[0]!r}; the cluster has {_listed(partitions)}"]
    account = parameters.get("account")
    if account and accounts and account.lower() not in accounts:
        return [f"`slurm_account` is {account!r}; yours are {_listed(accounts)}"]
    inside = [node for node in nodes if set(node.get("Partitions", "").split(",")) & set(names)]
    return _check_size(parameters, inside, ", ".join(names)) if inside else []


def _check_size(parameters: dict, nodes: list[dict[str, str]], partition: str) -> list[str]:
    """Return a line for each per-node resource that exceeds every node of the partition."""
    cpus = parameters["cpus_per_task"] * parameters["ntasks_per_node"]
    memory = int(str(parameters.get("mem", "0")).rstrip("M"))
    memory = memory or cpus * int(str(parameters.get("mem_per_cpu", "0")).rstrip("M"))
    model, count = _gpus(parameters)
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


def _gpus(parameters: dict) -> tuple[str, int]:
    """Return the model (empty for any) and the number of GPUs on each node."""
    text = parameters.get("gpus_per_node") or str(parameters.get("gres", "")).removeprefix("gpu:")
    total = parameters["additional_parameters"].get("gpus")
    if not text and not re.fullmatch(r"([^:,]+:)?\d+", str(total)):  # an option of the user's own, or none
        return "", 0
    model, _, count = str(text or total).rpartition(":")
    return model, -(-int(count) // parameters["nodes"]) if total and not text else int(count)


def _gpus_of(node: dict[str, str], model: str) -> int:
    """Return the number of GPUs of a node; the format is `gpu:a100:4(S:0-1),gpu:2`."""
    found = re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)(?=[(,]|$)", node.get("Gres", ""))
    return sum(int(count) for kind, count in found if not model or kind == model)


def _accounts() -> set[str]:
    """Return the user's accounts from the accounting database; empty without such a database."""
    if shutil.which("sacctmgr") is None:
        return set()
    try:
        text = slurm.run(
            ["sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", "format=account"], timeout=10
        )
    except slurm.SlurmError:
        return set()
    return set(text.lower().split())


def _listed(names: set[str] | dict) -> str:
    return ", ".join(sorted(names))
