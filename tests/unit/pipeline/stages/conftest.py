"""A model, sequences and settings on disk, as the workflow would hand them to a stage."""

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

# Transformers logs to the stderr of its first use: let that be the session's, not one test's.
transformers.utils.logging.get_logger()


@dataclass
class Stage:
    """How a stage ended."""

    code: int
    out: str
    error: str


@pytest.fixture
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function: write the settings of a stage, or its `inputs`, which may be wrong, as a job file."""

    def write(stage: str, content: Any) -> Path:
        path = tmp_path_factory.mktemp("jobs") / f"{stage}-{json_checksum(content)[:16]}.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, job_file: Callable) -> Callable[..., Stage]:
    """A function: run a stage in this process with its settings and options, as its command line would."""
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
            torch.set_flush_denormal(False)
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capfd.readouterr()
        return Stage(code, captured.out, captured.err)

    return run


@dataclass
class Files:
    """Inputs on disk and the settings that go with them."""

    folder: Path
    model: Path
    sequences: Path
    plan: Plan

    def settings(self, method: str, **changes: Any) -> dict[str, Any]:
        """Settings of the first run of a method of `qwen`, with some keys changed; learning without priors."""
        run = next(c for c in self.plan.grid.closure if c.model == "qwen" and c.method == method)
        make = {"prune": self.plan.prune_settings, "learn": self.plan.learn_settings}.get(
            run.definition.stage, self.plan.evaluate_settings
        )
        no_priors = {"masks": {}} if run.definition.stage == "learn" else {}
        return make(run).model_dump(mode="json") | no_priors | changes

    def evaluation(self, method: str, **changes: Any) -> dict[str, Any]:
        """Settings of the evaluation of the first run of a method of `qwen`, with some keys changed."""
        run = next(c for c in self.plan.grid.runs if c.model == "qwen" and c.method == method)
        return self.plan.evaluate_settings(run).model_dump(mode="json") | changes

    def expected(self, mask: Path) -> dict[str, Any]:
        """What the settings of a job say of the mask in a file."""
        masks = load_masks(mask)
        settings = masks.header.get("settings", {})
        found = {"method": settings.get("method", "magnitude"), "sparsity": settings.get("sparsity", 0.5)}
        return found | {"pattern": masks.pattern, "tile": masks.tile, "digest": masks.header.get("digest", "none")}

    def save(self, path: Path, masks: MaskSet) -> dict[str, Any]:
        """Write a mask as magnitude pruning would; returns what the settings of a job say of it."""
        masks.header = {"settings": {"method": "magnitude"}, "digest": "made by hand"}
        save_masks(path, masks)
        return self.expected(path)


@pytest.fixture
def files(tmp_path: Path, tiny_model: Callable, sequences: Callable, raw_config: dict) -> Files:
    """A tiny Qwen2 with its sequences; `patch-tile` is in its grid as well, on a frozen magnitude mask."""
    model = tmp_path / "model"
    tiny_model("qwen2").save_pretrained(model)
    np.save(tmp_path / "sequences.npy", sequences(8))
    raw_config["grid"].append({"methods": ["patch-tile"], "sparsity": [0.45]})
    raw_config["learning"]["methods"] = {"patch-tile": {"frozen_mask": "magnitude"}}
    return Files(tmp_path, model, tmp_path / "sequences.npy", Plan(validate_experiment(raw_config)))
