"""SLURM requests: translation of the jobs' resources to sbatch parameters."""

from __future__ import annotations

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_submitit.settings import ExecutorSettings

# Options of sbatch that the plugin sets itself; `slurm_extra` must not set them.
RESERVED = {"array", "comment", "error", "job-name", "no-requeue", "open-mode", "output", "parsable", "requeue"}
RESERVED |= {"signal", "time", "wait", "wrap"}


class ResourceError(ValueError):
    """Error about an invalid resource; the text names the value and a correction."""


@dataclass(frozen=True)
class Request:
    """SLURM request of a job.

    Attributes:
        parameters: arguments of `submitit.SlurmExecutor.update_parameters`.
        gpus: GPU model, empty for any, and number of GPUs per node.
        time_limits: maximum number of time limits that the job may reach, including the first.
        signal_delay: seconds between the warning signal and the limit; 0 for a job that cannot resume.
    """

    parameters: dict[str, Any]
    gpus: tuple[str, int]
    time_limits: int
    signal_delay: int

    @property
    def key(self) -> str:
        """Key that is equal for jobs that can share a job array."""
        parts = {**self.parameters, "additional_parameters": sorted(self.parameters["additional_parameters"].items())}
        return repr((sorted(parts.items()), self.time_limits, self.signal_delay))

    @property
    def memory(self) -> str:
        """Requested memory per node or per CPU, empty for the partition's default."""
        return self.parameters.get("mem") or self.parameters.get("mem_per_cpu") or ""


def requests_by_rule(
    jobs: Iterable[JobExecutorInterface], settings: ExecutorSettings, limits: Mapping[str, int]
) -> dict[str, list[Request] | str]:
    """Return the requests of each rule's jobs, or its error message; jobs with unknown resources are skipped."""
    requests: dict[str, dict[str, Request] | str] = defaultdict(dict)
    for job in jobs:
        if job.is_local or job.is_norun or isinstance(requests[job.name], str):
            continue
        # Snakemake's placeholder for a value that depends on a missing input.
        if any(str(value) == "<TBD>" for name, value in job.resources.items() if name != "tmpdir"):
            continue
        try:
            request = make_request(job.resources, job.threads, settings, limits)
            requests[job.name][request.key] = request
        except ResourceError as error:
            requests[job.name] = str(error)
        except Exception:  # noqa: BLE001, S112 - a user function that needs a missing input
            continue
    return {name: asked if isinstance(asked, str) else list(asked.values()) for name, asked in requests.items()}


def make_request(
    resources: Mapping[str, Any],
    threads: int,
    settings: ExecutorSettings,
    limits: Mapping[str, int],
    memory_factor: float = 1.0,
) -> Request:
    """Return the request of one job.

    Args:
        resources: resources of the Snakemake job. `runtime` (minutes) is required; `mem_mb` and `gpus` are per node.
            A job with `resumable` saves and exits on SIGUSR2 and resumes on a restart.
        threads: threads of the job.
        settings: the executor's settings. The warning of a resumable job comes in the last third of its time limit.
        limits: partition -> its time limit in minutes; the default partition is ``""``.
        memory_factor: factor on the memory of a job that ran out of memory before.

    Raises:
        ResourceError: a value is invalid, `runtime` is missing, or two values contradict each other.
    """
    nodes, tasks = _integer(resources, "nodes", 1), _integer(resources, "tasks_per_node", 1)
    runtime = _integer(resources, "runtime")
    if runtime is None:
        raise ResourceError("no `runtime`: give its minutes in the rule or in `default-resources`")
    resumable = bool(_integer(resources, "resumable", 0, least=0))
    minutes, time_limits = runtime, settings.time_limits if resumable else 1
    partitions = str(resources.get("slurm_partition") or "").split(",")
    partition_minutes = min((limits[name] for name in partitions if name in limits), default=runtime)
    if runtime > partition_minutes:
        if not resumable:
            raise ResourceError(
                f"`runtime` is {runtime} minutes, the partition allows {partition_minutes}; "
                "name another in `slurm_partition`, or make the job resumable"
            )
        minutes = partition_minutes
        # Reserve for early warnings (up to a minute), startup time and an underestimated runtime.
        useful = max(minutes - 2, minutes / 4)
        time_limits = max(time_limits, 2 * math.ceil(runtime / useful) + 1)
    delay = min(settings.signal_delay, 60 * minutes // 3) if resumable else 0
    # SLURM requeues the job after a node failure or a preemption.
    additional = {"requeue": True, "open_mode": "append", **_extra(str(resources.get("slurm_extra") or ""))}
    parameters: dict[str, Any] = {
        "time": minutes,
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": max(1, threads),
        **_memory(resources, memory_factor),
        # Only resumable jobs need a warning; 1 s is the minimum for the others.
        "signal_delay_s": max(1, delay),
        "additional_parameters": additional,
    }
    for name in ("slurm_partition", "slurm_account", "slurm_qos", "constraint", "exclude"):
        if resources.get(name):
            parameters[name.removeprefix("slurm_")] = str(resources[name])
    model, count = gpus = _gpus(resources)
    text = f"{model}:" if model else ""
    if count and settings.gpu_request == "gpus-per-node":
        parameters["gpus_per_node"] = f"{text}{count}"
    elif count and settings.gpu_request == "gres":
        parameters["gres"] = f"gpu:{text}{count}"
    elif count:  # submitit has no parameter for --gpus
        additional["gpus"] = f"{text}{count * nodes}"
    return Request(parameters, gpus, time_limits, delay)


def _integer(resources: Mapping[str, Any], name: str, default: int | None = None, least: int = 1) -> int | None:
    value = resources.get(name, default)
    if value is None:
        return None
    try:
        number = int(value)
        if number != float(value) or number < least:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ResourceError(f"`{name}` is {value!r}, not a whole number from {least} up") from None
    return number


def _memory(resources: Mapping[str, Any], factor: float) -> dict[str, str]:
    per_node, per_cpu = _integer(resources, "mem_mb"), _integer(resources, "mem_mb_per_cpu")
    if per_cpu is not None:
        return {"mem_per_cpu": f"{math.ceil(per_cpu * factor)}M"}
    return {} if per_node is None else {"mem": f"{math.ceil(per_node * factor)}M"}


def _gpus(resources: Mapping[str, Any]) -> tuple[str, int]:
    """Return the GPU model, empty for any, and the number of GPUs per node."""
    asked, named = resources.get("gpus") or 0, str(resources.get("gpu_model") or "")
    model, _, number = str(asked).rpartition(":")
    if not re.fullmatch(r"\d+", number):
        raise ResourceError(f"`gpus` is {asked!r}, not a whole number from 0 up, nor a model and one as in 'a100:2'")
    if named and model not in ("", named):
        raise ResourceError(f"`gpu_model` is {named!r} but `gpus` is {asked!r}; give the model once")
    model, count = named or model, int(number)
    if model and not count:
        raise ResourceError(f"`gpu_model` is {model!r} but `gpus` is 0; ask for one or more")
    return model, count


def _extra(text: str) -> dict[str, Any]:
    """Parse `--name=value --flag` into sbatch parameters."""
    parameters: dict[str, Any] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ResourceError(f"`slurm_extra` is {text!r}: {error}") from None
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ResourceError(f"`slurm_extra` has {word!r}; write options as --name=value or --flag")
        if name in RESERVED:
            raise ResourceError(f"`slurm_extra` has --{name}, which the executor sets itself")
        parameters[name.replace("-", "_")] = value if equals else True
    return parameters
