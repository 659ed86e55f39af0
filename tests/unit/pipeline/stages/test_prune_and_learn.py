"""The pruning and learning stages write the results of the library functions."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from patch.learning.learn import learn
from patch.learning.learning_settings import Learning
from patch.masks.nm import NM
from patch.masks.packed import load_masks, save_masks
from patch.models.loading import prunable_linears
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import PruneSettings
from patch.pruning.prune import prune

learn_module = importlib.import_module("patch.learning.learn")


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_prune(method: str, files: Any, stage: Callable, tiny_model: Callable, tmp_path: Path) -> None:
    options = {} if method == "magnitude" else {"sequences": files.sequences}
    if method == "sparsegpt":
        options["cache"] = tmp_path / "w.safetensors"
    settings = files.settings(method, pattern="2:4", sparsity=0.5)
    ended = stage("prune", settings, model=files.model, mask=tmp_path / "m.safetensors", **options)
    assert ended.code == 0, ended.error
    assert f"{method} 2:4: sparsity 0.5000" in ended.out
    model = tiny_model()
    expected = prune(model, method, NM(2, 4), np.load(files.sequences), 8)
    written = load_masks(tmp_path / "m.safetensors")
    assert all(torch.equal(written.masks[name], mask) for name, mask in expected.masks.items())
    assert written.header["settings"] == settings and written.header["cost"]["seconds"] >= 0
    if method == "sparsegpt":
        weights = load_file(tmp_path / "w.safetensors")
        assert set(weights) == set(expected.masks)
        for name, linear in prunable_linears(model).items():
            torch.testing.assert_close(weights[name], linear.weight, rtol=1e-4, atol=1e-5)
            assert (weights[name][~expected.masks[name]] == 0).all()


def test_update_takes_the_cached_weights_or_makes_them_again(
    files: Any, stage: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    settings, mask, cache = files.settings("sparsegpt"), tmp_path / "m.safetensors", tmp_path / "cache.safetensors"
    inputs = {"model": files.model, "sequences": files.sequences, "mask": mask, "cache": cache}
    assert stage("prune", settings, **inputs).code == 0
    whole, before = load_file(cache), mask.read_bytes()

    def update(name: str) -> dict[str, torch.Tensor]:
        ended = stage("update", settings, **inputs, weights=tmp_path / "sub" / name)
        assert ended.code == 0, ended.error
        return load_file(tmp_path / "sub" / name)

    moved = update("moved")
    assert not cache.exists(), "the cached file is moved, not copied"
    again = update("again")
    cache.write_bytes((tmp_path / "sub" / "again").read_bytes()[:-20])
    truncated = update("truncated")
    save_file(whole, cache, metadata={"digest": "of other settings"})
    other = update("other")
    for weights in (moved, again, truncated, other):
        assert set(weights) == set(whole)
        assert all(torch.equal(weights[name], value) for name, value in whole.items())
    assert mask.read_bytes() == before


def test_update_refuses_a_mask_that_it_cannot_make(
    files: Any, stage: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    mask = tmp_path / "m.safetensors"
    inputs = {"model": files.model, "sequences": files.sequences, "mask": mask, "cache": tmp_path / "none"}
    settings = files.settings("sparsegpt", pattern="2:4")
    digest = settings_digest(PruneSettings(**settings))
    for other, made_by, message in (
        (tiny_model(), digest, "another mask"),
        (tiny_model(num_hidden_layers=1), digest, "masks are of another model"),
        (tiny_model(), "others", "made with other settings"),
    ):
        masks = prune(other, "magnitude", NM(2, 4))
        masks.header = {"digest": made_by}
        save_masks(mask, masks)
        ended = stage("update", settings, **inputs, weights=tmp_path / "w")
        assert ended.code == 2 and message in ended.error and "Traceback" not in ended.error
        assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "patch-tile"])
def test_learn(method: str, files: Any, stage: Callable, tiny_model: Callable, tmp_path: Path) -> None:
    frozen = tmp_path / "frozen.safetensors"
    assert stage("prune", files.settings("magnitude"), model=files.model, mask=frozen).code == 0
    options = {"mask": tmp_path / "m.safetensors", "curve": tmp_path / "c.jsonl", "checkpoints": tmp_path / "run"}
    name = "frozen_mask" if method == "patch-tile" else "pattern_mask"
    options[name] = frozen
    settings = files.settings(method, masks={name: files.expected(frozen)})
    ended = stage("learn", settings, model=files.model, sequences=files.sequences, **options)
    assert ended.code == 0, ended.error
    masks = load_masks(frozen).masks
    expected = learn(
        tiny_model(),
        method,
        np.load(files.sequences),
        Learning(**settings["learning"]),
        settings["sparsity"],
        settings["tile"],
        settings["seed"],
        folder=tmp_path / "again",
        curve=tmp_path / "again.jsonl",
        **{"frozen" if method == "patch-tile" else "pattern_prior": masks},
    )
    written = load_masks(tmp_path / "m.safetensors")
    assert written.pattern == ("2:4" if method == "maskllm" else "hybrid")
    for name, mask in expected.masks.items():
        assert torch.equal(written.masks[name], mask)
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 5
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("names", "message"), [("wandb", "pip install wandb"), ("mlflow", "it may name tensorboard")])
def test_a_learn_stage_that_cannot_be_watched_says_so_at_once(
    names: str, message: str, files: Any, stage: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    options = {"mask": tmp_path / "m", "curve": tmp_path / "c", "checkpoints": tmp_path / "run"}
    watch = {"report_to": names, "tracker_folder": tmp_path / "watch", "run_name": "tiny/qwen/maskllm"}
    ended = stage(
        "learn", files.settings("maskllm"), model=tmp_path / "none", sequences=files.sequences, **options, **watch
    )
    assert ended.code == 2 and message in ended.error and "Traceback" not in ended.error
    assert not (tmp_path / "run").exists()


def test_a_stopped_learn_stage_goes_on_and_not_with_another_model_s_checkpoint(
    files: Any, stage: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"mask": tmp_path / "m", "curve": tmp_path / "c", "checkpoints": tmp_path / "run"}
    options |= {"model": files.model, "sequences": files.sequences}
    settings = files.settings("patch-joint")

    def stop_at(wanted: int) -> None:
        real = learn_module.batch_indices

        def batch_indices(step: int, *rest: Any) -> Any:
            if step == wanted:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(step, *rest)

        monkeypatch.setattr(learn_module, "batch_indices", batch_indices)

    with monkeypatch.context() as monkeypatch:
        stop_at(2)
        with pytest.raises(SystemExit) as stopped:
            stage("learn", settings, **options)
    assert stopped.value.code == 75 and not (tmp_path / "m").exists()
    other = stage(
        "learn", settings | {"upstream": "made from something else"}, **options | {"mask": tmp_path / "other"}
    )
    assert other.code == 0 and "resuming" not in other.out

    with monkeypatch.context() as monkeypatch:
        stop_at(2)
        with pytest.raises(SystemExit):
            stage("learn", settings, **options)
    ended = stage("learn", settings, **options)
    assert ended.code == 0 and "resuming at step 3" in ended.out
    assert [json.loads(line)["step"] for line in (tmp_path / "c").read_text().splitlines()] == [0, 1, 2, 3, 4]
