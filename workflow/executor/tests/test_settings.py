"""Options of the executor on Snakemake's command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import MISSING, Field, fields

import pytest
import snakemake_executor_plugin_submitit as plugin
from snakemake_executor_plugin_submitit.settings import ExecutorSettings, common_settings

FIELDS = fields(ExecutorSettings)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_an_option_has_help_and_a_default(field: Field) -> None:
    words = field.metadata["help"]
    assert words and words.endswith(".") and "%" not in words
    assert field.default is not MISSING and isinstance(field.default, field.type)
    assert field.type is not bool or field.default is False  # a flag can only be switched on


def test_defaults_make_sense() -> None:
    settings = ExecutorSettings()
    assert settings.oom_factor > 1 and settings.poll_seconds < settings.squeue_seconds < settings.lost_seconds


def test_jobs_share_the_filesystem() -> None:
    assert common_settings.non_local_exec and not common_settings.implies_no_shared_fs
    assert not common_settings.job_deploy_sources and common_settings.init_seconds_before_status_checks == 0


def test_the_package_has_what_snakemake_looks_for() -> None:
    assert plugin.ExecutorSettings is ExecutorSettings and plugin.common_settings is common_settings
    assert plugin.Executor.__name__ == "Executor"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = plugin.Nothing


def test_snakemake_shows_every_option() -> None:
    done = subprocess.run([sys.executable, "-m", "snakemake", "--help"], capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.split())
    for field in FIELDS:
        assert f"--submitit-{field.name.replace('_', '-')} " in text
        assert " ".join(field.metadata["help"].split())[:20] in text


def test_an_unknown_option_of_sbatch_for_gpus_is_refused() -> None:
    command = [sys.executable, "-m", "snakemake", "--submitit-gpu-request", "tres"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "gpus-per-node" in done.stderr
