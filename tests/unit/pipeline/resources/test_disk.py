"""Tests of disk estimates against sizes by hand and against real files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patch.learning.model_masks import build_masks
from patch.masks.packed import MaskSet, save_masks
from patch.models.loading import prunable_linears
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.resources.disk import CHECKPOINTS, DiskModel, folder_size
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run

MB = 1e6
# Layers of one block of the tests' models: q, k, v, o, gate, up, down.
QWEN = 2 * (24 * 24 + 12 * 24 + 12 * 24 + 24 * 24 + 3 * 24 * 40)
LLAMA = 2 * (4 * 24 * 24 + 3 * 24 * 48)


def disk_of(raw: dict) -> DiskModel:
    return DiskModel(Plan(validate_experiment(copy.deepcopy(raw))))


def run(disk: DiskModel, model: str, method: str, pattern: str | None = None) -> Run:
    runs = disk.plan.grid.closure
    return next(c for c in runs if (c.model, c.method) == (model, method) and pattern in (None, c.pattern))


def hub_model(dtype: str, **sizes: Any) -> dict:
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 1000,
    }
    source = {"kind": "hub", "repo": "a/b", "revision": "1234567", "shape": shape | sizes}
    return {"title": "Hub", "dtype": dtype, "source": source}


def test_masks(raw_config: dict) -> None:
    disk = disk_of(raw_config)
    assert disk.mask(run(disk, "qwen", "magnitude")).kept == QWEN / 8 / MB
    assert disk.mask(run(disk, "qwen", "patch-joint")).kept == (QWEN / 8 + QWEN / 16 / 8) / MB


def test_a_mask_file_is_as_large(raw_config: dict, tmp_path: Path) -> None:
    disk = disk_of(raw_config)
    path = tmp_path / "mask.safetensors"
    save_masks(path, MaskSet({"layer": torch.ones(96, QWEN // 96, dtype=torch.bool)}, "unstructured"))
    estimate = MB * disk.mask(run(disk, "qwen", "wanda", "unstructured")).kept
    assert estimate <= path.stat().st_size <= estimate + 500  # and a header


@pytest.mark.parametrize(("family", "method"), [("qwen", "maskllm"), ("qwen", "patch-joint"), ("llama", "patch-tile")])
def test_checkpoints_are_what_learning_holds(
    family: str, method: str, raw_config: dict, tiny_model: Callable[..., torch.nn.Module]
) -> None:
    disk = disk_of(raw_config)
    one = run(disk, family, method)
    model = tiny_model({"qwen": "qwen2"}.get(family, family))
    frozen = {name: torch.ones_like(layer.weight).bool() for name, layer in model.named_modules() if "proj" in name}
    masks = build_masks(model, method, disk.plan.grid.learning(one), 0.45, one.tile, 0, frozen=frozen)
    container = torch.nn.ModuleList(masks.values())
    optimizer = torch.optim.AdamW(container.parameters(), 0.001)
    for parameter in container.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [v for state in optimizer.state_dict()["state"].values() for v in state.values() if v.ndim]
    held = sum(tensor.nbytes for tensor in [*container.state_dict().values(), *moments])
    assert disk.learn(one).scratch == CHECKPOINTS * held / MB


def test_checkpoints_hold_the_best_mask(raw_config: dict) -> None:
    scratch = []
    for keep in ("last", "best"):
        raw_config["learning"]["common"] |= {"keep": keep}
        disk = disk_of(raw_config)
        scratch.append(disk.learn(run(disk, "qwen", "maskllm")).scratch)
    assert scratch[1] - scratch[0] == pytest.approx(CHECKPOINTS * QWEN / 8 / MB)


def test_updated_weights_are_of_the_models_type(raw_config: dict) -> None:
    disk = disk_of(raw_config)
    assert disk.weights(run(disk, "llama", "sparsegpt")).kept == 4 * LLAMA / MB
    raw_config["models"]["llama"]["dtype"] = "bfloat16"
    disk = disk_of(raw_config)
    assert disk.weights(run(disk, "llama", "sparsegpt")).kept == 2 * LLAMA / MB


def test_fine_tuning_keeps_weights_and_its_checkpoints_hold_what_it_trains(
    raw_config: dict, tiny_model: Callable[..., torch.nn.Module]
) -> None:
    settings = {"use": {"corpus": "text", "split": "train"}, "batch_size": 4, "lora_rank": 3}
    raw_config["finetuning"] = settings
    raw_config["grid"] = [{"methods": ["wanda"], "models": ["llama"], "finetune": kind} for kind in ("full", "lora")]
    disk = disk_of(raw_config)
    full, lora = (disk.finetune(one) for one in disk.plan.grid.runs)
    assert full.kept == lora.kept == 4 * LLAMA / MB and full.scratch == CHECKPOINTS * 3 * 4 * LLAMA / MB
    sides = sum(sum(layer.weight.shape) for layer in prunable_linears(tiny_model("llama")).values())
    assert lora.scratch == CHECKPOINTS * 3 * 4 * 3 * sides / MB


def test_models(raw_config: dict, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/weights").write_bytes(bytes(5000))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    disk = disk_of(raw_config | {"models": raw_config["models"] | {"hub": hub_model("bfloat16")}})
    block = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
    assert disk.model("hub").kept == 2 * (3 * block + 2 * 1000 * 64) / MB
    assert folder_size(folder) == (5000 + 23) / MB and folder_size(tmp_path / "none") == 0
    # Trained in fp32: tied embedding; weights, a moment for the blocks, two for the embedding.
    trained = disk.model("qwen")
    assert trained.kept == 4 * (QWEN + 300 * 24) / MB
    assert trained.scratch == 3 * 4 * (2 * QWEN + 3 * 300 * 24) / MB


def sequences_of(disk: DiskModel, model: str, kind: str) -> float:
    sequences = next(
        w
        for w in disk.plan.sequences.values()
        if w.settings.kind == kind and w.tokenizer == disk.plan.store.tokenizer_path(model)
    )
    return disk.sequences(sequences).kept


def test_sequences_of_a_known_number(raw_config: dict) -> None:
    assert sequences_of(disk_of(raw_config), "qwen", "calibration") == 4 * 12 * 2 / MB
    for vocabulary, size in ((65536, 2), (65537, 4)):
        raw = raw_config | {"models": {"hub": hub_model("bfloat16", vocab_size=vocabulary)}}
        raw["grid"] = [{"methods": ["maskllm"]}]
        # As many sequences as 5 steps of 4 can see, and 32 held out; the text of an unknown package bounds nothing.
        assert sequences_of(disk_of(raw), "hub", "packed") == (5 * 4 + 32) * 12 * size / MB


def test_sequences_of_all_text(raw_config: dict, tmp_path: Path) -> None:
    assert sequences_of(disk_of(raw_config), "qwen", "packed") == 0, "nothing is known of a package that is not there"
    (tmp_path / "a.txt").write_text("x" * 1000)
    (tmp_path / "b.txt").write_text("x" * 250)
    source = {"kind": "files", "files": [str(tmp_path / "*.txt")]}
    raw_config["corpora"]["text"] = {"source": source}
    disk = disk_of(raw_config)
    assert disk.corpus("text").kept == 1250 / MB
    assert sequences_of(disk, "qwen", "packed") == 2 * 500 / MB


def test_token_files_are_not_larger(raw_config: dict, tmp_path: Path, sequences: Callable[..., np.ndarray]) -> None:
    np.save(tmp_path / "sequences.npy", sequences(4, 12))
    assert (tmp_path / "sequences.npy").stat().st_size - 128 == MB * sequences_of(
        disk_of(raw_config), "qwen", "calibration"
    )


def test_data_sets_of_the_hub(raw_config: dict) -> None:
    source = {"kind": "hub", "repo": "a/b", "revision": "1234567", "splits": {"test": "test"}, "size_gb": 2}
    raw_config["corpora"]["other"] = {"source": source}
    space = disk_of(raw_config).corpus("other")
    assert (space.kept, space.cache) == (3000, 2000) and space.scratch == pytest.approx(2000 * 2.8)


def test_data_sets_of_lm_evals_tasks_fill_the_cache(raw_config: dict) -> None:
    assert disk_of(raw_config).fetched_tasks().cache == 1000
