"""Tests of the calls of the public code's quick start on a small model and local text."""

import importlib
import json
import pkgutil
import runpy
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch

from patch.errors import InputError
from patch.masks.nm import NM, obeys
from patch.masks.packed import load_masks
from patch.masks.tile import sum_tiles
from patch.models.loading import load_model, prunable_linears, weight_matrix
from patch.reference_api import loading
from patch.utils import get_llm

from .conftest import TASKS, save_model

QUICK_START = Path(__file__).with_name("quick_start.txt")
SLIM = Path(__file__).parents[3] / "slim_local"
TILE, TARGET = 8, 0.45


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs the quick start as a script on a model folder, and returns its variables."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run_script(folder):
        code, name = QUICK_START.read_text(), '"facebook/opt-125m"'
        assert code.count(name) == 1
        script = tmp_path / "script.py"
        script.write_text(code.replace(name, repr(str(folder))))
        return runpy.run_path(str(script))

    return run_script


def test_quick_start(run, configure, text, tmp_path):
    sizes = {"hidden_size": 256, "ffn_dim": 512, "word_embed_proj_dim": 256, "max_position_embeddings": 4096}
    folder = save_model("opt", text, tmp_path / "opt", **sizes)
    configure(
        {
            "learning": {"steps": 2, "batch_size": 1, "warmup_steps": 1},
            "calibration": {"seqlen": 32},
            "evaluation": {"tasks": ["cloze"], "include_path": str(TASKS), "task_samples": 10, "perplexity_seqlen": 64},
        }
    )
    found = run(folder)

    assert 1 < found["perplexity"] < 1e6
    results = found["results"]
    assert set(results) == {"cloze", "average"} and 0 <= results["average"] == results["cloze"] <= 1
    check_hybrid(found["model"], folder, 128)
    (run_folder,) = Path("patch-runs").glob("patch-tile-*")
    assert sorted(file.name for file in run_folder.iterdir()) == ["curve.jsonl", "mask.safetensors"]
    curve = [json.loads(line) for line in (run_folder / "curve.jsonl").read_text().splitlines()]
    assert len(curve) == 2 and curve[0]["tile_temperature"] == 4.0 and curve[0]["target_density"] == 0.55
    stored = load_masks(run_folder / "mask.safetensors").masks
    for name, linear in prunable_linears(found["model"]).items():
        assert torch.equal(weight_matrix(linear) != 0, stored[name])


def test_a_short_context_is_refused_before_the_model_is_loaded_again(run, model_folder, monkeypatch):
    loaded, load = [], loading.load_causal_lm
    monkeypatch.setattr(
        loading, "load_causal_lm", lambda name, *rest, **more: loaded.append(name) or load(name, *rest, **more)
    )
    with pytest.raises(InputError, match="`mask_args.fine_tuning_sequence_length` is 4096, .* use at most 128"):
        run(model_folder)
    assert loaded == [str(model_folder)]


def test_the_folder_of_the_facade_on_the_path_shadows_nothing(tmp_path, monkeypatch):
    """A script in the root of the repository puts this folder first on the path."""
    (tmp_path / "utils.py").touch()
    monkeypatch.setattr(sys, "path", [str(SLIM), str(tmp_path), *sys.path])
    assert importlib.import_module("slim_local.utils.model").get_llm is get_llm
    assert PathFinder.find_spec("utils").origin == str(tmp_path / "utils.py")
    assert not list(pkgutil.iter_modules([str(SLIM)]))


def check_hybrid(model, model_folder, tile=TILE, target=TARGET):
    """Check that the budget is met to the tile, sparse tiles are 2:4, and kept weights are unchanged."""
    originals, kept, size = prunable_linears(load_model(model_folder)), 0, 0
    for name, linear in prunable_linears(model).items():
        weight, original = weight_matrix(linear), weight_matrix(originals[name])
        mask = weight != 0
        assert torch.equal(weight[mask], original[mask])
        dense = sum_tiles(mask.float(), tile) == tile * tile
        good = obeys(mask, NM(2, 4)).reshape(mask.shape[0], -1, tile // 4)
        rows = dense.repeat_interleave(tile, 0)
        assert (good.all(dim=-1) | rows).all()
        kept, size = kept + int(mask.sum()), size + mask.numel()
    assert abs(1 - kept / size - target) <= tile * tile / 2 / size
