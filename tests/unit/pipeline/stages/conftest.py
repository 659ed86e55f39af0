"""Fixtures that run a stage, with a model, sequences and settings on disk as in the workflow."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from patch.distributed.signals import STOP
from patch.files.io import json_checksum
from patch.masks.packed import MaskSet, load_masks, save_masks
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.runs.plan import Plan
from patch.pipeline.stages.__main__ import main

# Transformers logs to the stderr of its first use, which must be that of the session and not of one test.
transformers.utils.logging.get_logger()


@dataclass
class Stage:
    """Exit code and output of a stage."""

    code: int
    out: str
    error: str


@pytest.fixture
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes settings or `inputs` of a stage, valid or not, as a job file."""

    def write(stage: str, content: Any) -> Path:
        path = tmp_path_factory.mktemp("jobs") / f"{stage}-{json_checksum(content)[:16]}.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, job_file: Callable) -> Callable[..., Stage]:
    """Return a function that runs the command line of a stage in this process."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))

    def run(name: str, settings: dict[str, Any], **options: Any) -> Stage:
        arguments = [name, "--settings", str(job_file(name, settings))]
        for option, value in options.items():
            arguments += [f"--{option.replace('_', '-')}", str(value)]
        capfd.readouterr()
        handlers, threads = {number: signal.getsignal(number) for number in STOP}, torch.get_num_threads()
        try:
            code = main(arguments)
        finally:
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capfd.readouterr()
        return Stage(code, captured.out, captured.err)

    return run


@dataclass
class Files:
    """Inputs on disk, and the settings of their stages."""

    folder: Path
    model: Path
    sequences: Path
    plan: Plan

    def settings(self, method: str, **changes: Any) -> dict[str, Any]:
        """Return the settings of the first run of a method of `qwen`, with changes; learning has no mask inputs."""
        run = next(c for c in self.plan.grid.closure if c.model == "qwen" and c.method == method)
        make = {"prune": self.plan.settings.prune, "learn": self.plan.settings.learn}.get(
            run.definition.stage, self.plan.settings.evaluate
        )
        no_priors = {"masks": {}} if run.definition.stage == "learn" else {}
        return make(run).model_dump(mode="json") | no_priors | changes

    def evaluation(self, method: str, **changes: Any) -> dict[str, Any]:
        """Return the evaluation settings of the first run of a method of `qwen`, with changes."""
        run = next(c for c in self.plan.grid.runs if c.model == "qwen" and c.method == method)
        return self.plan.settings.evaluate(run).model_dump(mode="json") | changes

    def expected(self, mask: Path) -> dict[str, Any]:
        """Return the description of a mask file for the settings of a job."""
        masks = load_masks(mask)
        settings = masks.header.get("settings", {})
        found = {"method": settings.get("method", "magnitude"), "sparsity": settings.get("sparsity", 0.5)}
        return found | {"pattern": masks.pattern, "tile": masks.tile, "digest": masks.header.get("digest", "none")}

    def save(self, path: Path, masks: MaskSet) -> dict[str, Any]:
        """Write a mask as magnitude pruning does, and return its description for the settings of a job."""
        masks.header = {"settings": {"method": "magnitude"}, "digest": "made by hand"}
        save_masks(path, masks)
        return self.expected(path)


@pytest.fixture
def files(tmp_path: Path, tiny_model: Callable, sequences: Callable, raw_config: dict) -> Files:
    """Return a tiny Qwen2 with sequences; its grid includes `patch-tile` with a frozen magnitude mask."""
    model = tmp_path / "model"
    tiny_model("qwen2").save_pretrained(model)
    np.save(tmp_path / "sequences.npy", sequences(8))
    raw_config["grid"].append({"methods": ["patch-tile"], "sparsity": [0.45]})
    raw_config["learning"]["methods"] = {"patch-tile": {"frozen_mask": "magnitude"}}
    return Files(tmp_path, model, tmp_path / "sequences.npy", Plan(validate_experiment(raw_config)))
