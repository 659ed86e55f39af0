"""Settings of the plugin: each field is an option `--submitit-...` and a key of a profile."""

# No `from __future__ import annotations`: Snakemake derives options from the fields' types.
from dataclasses import dataclass, field
from typing import Any

from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase


def _option(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Options of the executor; Snakemake reads their names, types and help from the fields."""

    folder: str = _option(
        ".snakemake/submitit",
        "Submit folder on a shared filesystem, for pickles and SLURM's logs.",
    )
    gpu_request: str = _option(
        "gpus-per-node", "Option of sbatch that requests GPUs.", choices=("gpus-per-node", "gres", "gpus")
    )
    array_from: int = _option(3, "Minimum number of equal ready jobs that form a job array; 0 for no arrays.")
    signal_delay: int = _option(90, "Seconds between the warning of a resumable job and its time limit.")
    time_limits: int = _option(
        3,
        "Maximum number of time limits that a resumable job may reach; raised automatically if its runtime exceeds the "
        "partition's limit.",
    )
    oom_retries: int = _option(2, "Resubmissions of a job that ran out of memory, each with more memory.")
    oom_factor: float = _option(1.5, "Factor on the memory at each of these resubmissions.")
    poll_seconds: int = _option(2, "Seconds between checks of the jobs' result files.")
    squeue_seconds: int = _option(20, "Seconds between calls of squeue, one for all jobs.")
    lost_seconds: int = _option(60, "Seconds after which a job without a result that squeue does not list is lost.")
    submit_minutes: int = _option(30, "Minutes of retries of sbatch while the controller is unreachable.")
    prologue: str = _option("", "Shell lines that run on the node before each job: modules, variables, an environment.")
    container: str = _option("", "Command in which the job's command runs, such as `apptainer exec --nv image.sif`.")


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    auto_deploy_default_storage_provider=False,
)
