"""Results of other settings: they are made again if Snakemake's metadata is missing, and never printed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from patch.files.io import read_checked_json, write_checked_json

MASKS = "results/tiny/masks/local"


@pytest.fixture
def forgotten(copied: Path) -> Path:
    """Return a copy without Snakemake's metadata, as of results that were moved to another place."""
    shutil.rmtree(copied / ".snakemake")
    return copied


def change(folder: Path, section: str, key: str, value: object) -> None:
    settings = yaml.safe_load((folder / "tiny.yaml").read_text())
    settings[section][key] = value
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))


def test_nothing_runs_again_where_the_settings_are_the_same(forgotten: Path, planned: Callable) -> None:
    assert not planned(forgotten)


def test_what_other_settings_made_runs_again(forgotten: Path, planned: Callable, patch_command: Callable) -> None:
    change(forgotten, "evaluation", "limit", 5)
    jobs = planned(forgotten)
    assert jobs["evaluate"] == 20 and jobs["collect"] == jobs["compare"] == 1
    assert not {"prune", "learn", "finetune", "train_model"} & set(jobs)
    change(forgotten, "learning", "methods", {"maskllm": {"lr": 0.002}})
    jobs = planned(forgotten)
    assert jobs["learn"] > 0
    numbers = json.loads(patch_command(forgotten, "plan", "--json").stdout)
    assert numbers["total"]["jobs_to_come"] == jobs.total() - jobs["all"]


def test_show_names_what_other_settings_made(forgotten: Path, patch_command: Callable) -> None:
    assert patch_command(forgotten, "show").returncode == 0
    whole = patch_command(forgotten, "show", "--partial")
    assert "20 of 20 runs" in whole.stdout and "Left out" not in whole.stdout
    change(forgotten, "evaluation", "limit", 5)
    refused = patch_command(forgotten, "show")
    assert refused.returncode == 2 and "20 of 20 results were measured with other settings" in refused.stderr
    refused = patch_command(forgotten, "show", "--partial")
    assert refused.returncode == 2 and "no record with the settings of this configuration yet" in refused.stderr


def test_show_partial_leaves_stale_records_out(forgotten: Path, patch_command: Callable) -> None:
    record = forgotten / "results/tiny/records/local/dense_dense_0_s0.json"
    write_checked_json(record, read_checked_json(record) | {"config_digest": "00000000"})
    shown = patch_command(forgotten, "show", "--partial")
    assert shown.returncode == 0, shown.stderr
    assert "19 of 20 runs" in shown.stdout
    assert "Left out because they were made with other settings" in shown.stdout
    assert "records/local/dense_dense_0_s0.json" in shown.stdout


def test_a_mask_in_the_place_of_another_is_not_evaluated(copied: Path, snakemake: Callable) -> None:
    place = copied / MASKS / "magnitude_2of4_0.5_s0.safetensors"
    times = place.stat()
    shutil.copyfile(copied / MASKS / "patch-joint_hybrid_0.45_t16_s0.safetensors", place)
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    record = "results/tiny/records/local/magnitude_2of4_0.5_s0.json"
    (copied / record).unlink()
    run = snakemake(copied, record)
    assert run.returncode != 0 and not (copied / record).exists()
    assert "method is 'patch-joint', expected 'magnitude'" in run.stdout + run.stderr
    # A full run makes the mask again instead.
    assert "magnitude_2of4_0.5_s0.safetensors" in snakemake(copied, "--dry-run").stdout
