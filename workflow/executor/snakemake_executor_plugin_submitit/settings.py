"""Settings of the plugin: each field is an option `--submitit-...` and a key of a profile."""

# No `from __future__ import annotations`: Snakemake derives options from the fields' types.
from dataclasses import dataclass, field

from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

GPU_REQUESTS = ("gpus-per-node", "gres", "gpus")


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Options of the executor; Snakemake reads their names, types and help from the fields."""

    folder: str = field(
        default=".snakemake/submitit",
        metadata={"help": "Submit folder: pickles and SLURM's logs, a folder for each run. On a shared filesystem."},
    )
    gpu_request: str = field(
        default="gpus-per-node",
        metadata={"help": "How GPUs are asked for: gpus-per-node, gres or gpus."},
    )
    array_from: int = field(
        default=3,
        metadata={"help": "As many equal jobs that are ready together go as one job array; 0 for never."},
    )
    signal_delay: int = field(
        default=90,
        metadata={"help": "Seconds before its time limit that a resumable job is told to save and leave."},
    )
    time_limits: int = field(
        default=3,
        metadata={
            "help": "How often a resumable job may reach its time limit; more where its runtime is cut to fit "
            "the partition.",
        },
    )
    oom_retries: int = field(
        default=2,
        metadata={"help": "How often a job that ran out of memory is submitted again with more."},
    )
    oom_factor: float = field(default=1.5, metadata={"help": "By how much its memory grows each time."})
    poll_seconds: int = field(default=2, metadata={"help": "Seconds between looks at the result files of jobs."})
    squeue_seconds: int = field(default=20, metadata={"help": "Seconds between calls of squeue, one for all jobs."})
    lost_seconds: int = field(
        default=60,
        metadata={
            "help": "Seconds that a job may be unknown to squeue without a result before it is lost.",
        },
    )
    submit_minutes: int = field(
        default=30,
        metadata={"help": "Minutes over which sbatch is tried again while the controller is away."},
    )
    prologue: str = field(
        default="",
        metadata={"help": "Shell lines run on the node before a job: modules, variables, an environment."},
    )
    container: str = field(
        default="",
        metadata={"help": "Command that the job's command runs in, such as `apptainer exec --nv image.sif`."},
    )


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
)
