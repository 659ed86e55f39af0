"""The fine-tuning stage writes weights that the evaluation and the export verify."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patch.errors import InputError
from patch.files.tensors import load_tensors, save_tensors
from patch.learning.finetune import finetune
from patch.learning.finetuning_settings import Finetuning
from patch.masks.packed import load_masks
from patch.models.loading import prunable_linears, weight_matrix
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import ExpectedMask, FinetuneSettings, PruneSettings
from patch.pipeline.stages._common import load_updated
from patch.pruning.weights import load_weights, read_weights
from patch.pruning.weights_header import FORMAT, read_weights_header

FINETUNING = {"use": {"corpus": "text", "split": "train"}, "steps": 3, "batch_size": 4, "seqlen": 12, "lr": 0.01}


@pytest.fixture
def pruned(files: Any, stage: Callable, tmp_path: Path) -> dict[str, Path]:
    """Return the inputs of the stage from a model that SparseGPT has pruned."""
    mask, weights = tmp_path / "m.safetensors", tmp_path / "w.safetensors"
    made = {"model": files.model, "sequences": files.sequences, "mask": mask}
    assert stage("prune", files.settings("sparsegpt"), **made, cache=weights).code == 0
    return made | {"weights": weights, "calibration": files.sequences}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Path]:
    """Return the paths of the outputs of the stage."""
    return {"finetuned": tmp_path / "f.safetensors", "curve": tmp_path / "c.jsonl", "checkpoints": tmp_path / "points"}


def inputs(pruned: dict[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in pruned.items() if name != "weights"}


def settings_of(files: Any, pruned: dict[str, Path], kind: str, **changes: Any) -> dict[str, Any]:
    mask, finetuning = ExpectedMask(**files.expected(pruned["mask"])), Finetuning(**FINETUNING | changes)
    fixed = {"upstream": "", "seed": 0, "dtype": "float32", "device": "cpu"}
    fixed["pruning"] = PruneSettings(**files.settings("sparsegpt"))
    return FinetuneSettings(kind=kind, mask=mask, finetuning=finetuning, **fixed).model_dump(mode="json")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_it_starts_from_the_updated_weights(
    kind: str, files: Any, pruned: dict, options: dict, stage: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    settings = settings_of(files, pruned, kind)
    ended = stage("finetune", settings, **inputs(pruned), **options)
    assert ended.code == 0, ended.error
    assert f"finetune {kind}: sparsity 0.5000" in ended.out and not options["checkpoints"].exists()
    assert [json.loads(line)["step"] for line in options["curve"].read_text().splitlines()] == [0, 1, 2]
    model, masks = tiny_model(), load_masks(pruned["mask"])
    load_weights(pruned["weights"], prunable_linears(model))
    places = {"folder": tmp_path / "direct", "curve": tmp_path / "direct.jsonl"}
    finetune(model, masks, kind, np.load(files.sequences), Finetuning(**FINETUNING), **places)
    digest = settings_digest(FinetuneSettings(**settings))
    written = read_weights(options["finetuned"], prunable_linears(model), digest)
    for name, linear in prunable_linears(model).items():
        torch.testing.assert_close(written[name], weight_matrix(linear), rtol=1e-4, atol=1e-5)
        assert not written[name][~masks.masks[name]].any()
    header = read_weights_header(options["finetuned"])
    assert header.digest == digest and set(header.cost) == {"seconds", "peak_memory_mb"}


def test_a_zero_that_is_none_is_found(
    files: Any, pruned: dict, options: dict, stage: Callable, tiny_model: Callable
) -> None:
    assert stage("finetune", settings_of(files, pruned, "full"), **inputs(pruned), **options).code == 0
    path, masks, model = options["finetuned"], load_masks(pruned["mask"]), tiny_model()
    header, tensors = load_tensors(path, FORMAT, "weights")
    load_updated(path, model, masks, None, header["digest"])
    name = list(tensors)[-1]
    row, column = (~masks.masks[name]).nonzero()[0].tolist()
    tensors[name][row, column] = 1e-30
    save_tensors(path, FORMAT, header, tensors)
    with pytest.raises(InputError, match=rf"fine-tuned weights .*{name}: 1 of .* that the mask removes are not zero"):
        load_updated(path, model, masks, None, header["digest"])
    with pytest.raises(InputError, match="made with other settings"):
        load_updated(path, model, masks, None, "another")


def test_another_mask_is_refused(files: Any, pruned: dict, options: dict, stage: Callable) -> None:
    settings = settings_of(files, pruned, "full")
    settings["mask"]["digest"] = "another"
    ended = stage("finetune", settings, **inputs(pruned), **options)
    assert ended.code == 2 and "it was made with other settings or for another model" in ended.error
