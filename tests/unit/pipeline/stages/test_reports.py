"""Progress reports of a stage: counts and final state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from patch.pipeline.runs.progress import Progress, read_progress


def test_a_stage_reports_its_blocks_and_its_end(files: Any, stage: Callable, tmp_path: Path) -> None:
    log = tmp_path / "prune.log"
    options = {"model": files.model, "sequences": files.sequences, "mask": tmp_path / "m.safetensors", "log": log}
    assert stage("prune", files.settings("wanda"), **options).code == 0
    assert read_progress(log).progress == Progress(state="done", done=2, total=2)


def test_a_failed_stage_reports_its_error(files: Any, stage: Callable, tmp_path: Path) -> None:
    log = tmp_path / "prune.log"
    options = {"model": tmp_path / "none", "sequences": files.sequences, "mask": tmp_path / "m", "log": log}
    assert stage("prune", files.settings("wanda"), **options).code == 2
    progress = read_progress(log).progress
    assert progress.state == "failed" and "none" in progress.error and progress.done is None
