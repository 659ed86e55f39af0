"""SLURM requests of a workflow's jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

from snakemake_executor_plugin_submitit.resources import Request, ResourceError, make_request
from snakemake_executor_plugin_submitit.settings import ExecutorSettings


def request_of(
    job: JobExecutorInterface, settings: ExecutorSettings, limits: Mapping[str, int], memory_factor: float = 1.0
) -> Request:
    """Return the request of one job.

    Args:
        job: a Snakemake job.
        settings: the executor's settings.
        limits: partition -> its time limit in minutes; the default partition is ``""``.
        memory_factor: factor on the memory of a job that ran out of memory before.

    Raises:
        ResourceError: see `make_request`.
    """
    partitions = str(job.resources.get("slurm_partition") or "").split(",")
    return make_request(
        job.resources,
        job.threads,
        settings.gpu_request,
        settings.signal_delay,
        settings.time_limits,
        min((limits[name] for name in partitions if name in limits), default=None),
        memory_factor,
    )


def requests_of(
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
            request = request_of(job, settings, limits)
            requests[job.name][request.key] = request
        except ResourceError as error:
            requests[job.name] = str(error)
        except Exception:  # noqa: BLE001, S112 - a user function that needs a missing input
            continue
    return {name: asked if isinstance(asked, str) else list(asked.values()) for name, asked in requests.items()}
