"""A run with a minimal remote executor: checks before the first job, and submitted jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from patch.pipeline.config.load import load_experiment
from patch.pipeline.runs.plan import Plan

ROOT = Path(__file__).parents[2]
# Submits a job by starting it, and logs its rule.
EXECUTOR = """
import subprocess
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False)


class Executor(RemoteExecutor):
    def run_job(self, job):
        script = self.get_jobscript(job)
        self.write_jobscript(job, script)
        with open("submitted.txt", "a") as file:
            print(job.name, file=file)
        self.report_job_submission(SubmittedJobInfo(job, aux={"process": subprocess.Popen([script])}))

    async def check_active_jobs(self, active_jobs):
        for job in active_jobs:
            code = job.aux["process"].poll()
            if code is None:
                yield job
            elif code:
                self.report_job_error(job)
            else:
                self.report_job_success(job)

    def cancel_jobs(self, active_jobs):
        for job in active_jobs:
            job.aux["process"].kill()
"""


@pytest.fixture
def folder(tmp_path: Path, raw_config: dict) -> Path:
    """Return a folder with a small text and an experiment with trained models and one of the hub."""
    plugin = tmp_path / "plugins/snakemake_executor_plugin_started/__init__.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(EXECUTOR)
    text = "\n\n".join(f"In the beginning was word number {n}. And then came others, {7 * n}." for n in range(900))
    (tmp_path / "text.txt").write_text(text)
    raw_config["corpora"]["text"] = {"source": {"kind": "files", "files": ["text.txt"]}}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000}
    hub = {"kind": "hub", "repo": "owner/model", "revision": "1234567", "shape": sizes}
    raw_config["models"]["hub"] = {"title": "Hub", "source": hub}
    raw_config["published"] = str(ROOT / "config/published.json")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw_config))
    return tmp_path


def run(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(folder / "tiny.yaml"), "--workflow-profile", str(ROOT / "profiles/default")]
    command += ["--executor", "started", "--jobs", "2", "--seconds-between-status-checks", "1", *options]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = os.pathsep.join([str(ROOT), str(folder / "plugins")])
    environment = os.environ | {"PATH": path, "PYTHONPATH": modules} | variables
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)


def test_nothing_starts_when_a_check_fails(folder: Path) -> None:
    # As in profiles/slurm; Snakemake then estimates the disk space of light jobs by inputs that do not exist yet.
    failed = run(folder, "--default-resources", "slurm_partition=''", HF_HUB_OFFLINE="1")
    message = failed.stdout + failed.stderr
    assert failed.returncode == 1
    assert message.count("HF_HUB_OFFLINE is '1', but 1 model must still be fetched; unset it") == 1
    assert "Traceback" not in message and "Execute " not in message
    assert not (folder / "work").exists() and not (folder / "submitted.txt").exists()
    # Snakemake has released its lock, so the next run can start.
    assert not list((folder / ".snakemake/locks").glob("*"))


def test_jobs_are_submitted_and_light_ones_are_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    sequences = Plan(load_experiment("tiny.yaml")).store.calibration_sequences("qwen", seed=0).path
    done = run(folder, sequences, HF_HUB_OFFLINE="1")
    message = done.stdout + done.stderr
    assert done.returncode == 0, message
    assert "plan: 3 of " in done.stdout and done.stdout.count("plan: ") == 1, "the hub's model is not for this"
    assert "hub: nothing to fetch" in done.stdout
    assert (folder / "submitted.txt").read_text().splitlines() == ["calibrate"]
    (log,) = (folder / ".snakemake/log").glob("*.log")
    for rule in ("fetch_corpus", "make_tokenizer"):
        assert f"localrule {rule}:" in log.read_text()
    assert (folder / sequences).exists()
