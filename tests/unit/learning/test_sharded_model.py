"""Tests of models whose prunable weights are sharded: what a process loads, and masks learned as by one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from patch.errors import InputError
from patch.learning.learn import learn
from patch.learning.sharded_model import load_sharded
from patch.masks.packed import MaskSet
from patch.masks.row_sharding import WeightRows
from patch.models.loading import load_model, prunable_linears, weight_matrix


@pytest.fixture
def saved_model(tiny_model: Callable, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a tiny model of a family."""

    def save(family: str = "llama") -> Path:
        tiny_model(family).save_pretrained(tmp_path / family)
        return tmp_path / family

    return save


def learned(
    model: nn.Module, weights: dict[str, WeightRows] | None, method: str, folder: Path, *rest: Any, **start: Any
) -> tuple[MaskSet, list[dict[str, Any]]]:
    """Return masks, and the values of the curve that do not depend on the time."""
    hybrid, files = method != "maskllm", {"folder": folder, "curve": folder.with_suffix(".jsonl")}
    options = (0.4, 4) if hybrid else (0.5, None)
    masks = learn(model, method, *rest, *options, weights=weights, **files, **start)
    lines = [json.loads(line) for line in files["curve"].read_text().splitlines()]
    keys = ("loss", "cross_entropy", "density", "kept_norm", "initial_held_out_loss", "held_out_loss")
    return masks, [{key: line.get(key) for key in keys} for line in lines]


@pytest.mark.parametrize("method", ["maskllm", "patch-joint", "patch-tile"])
@pytest.mark.parametrize(
    ("processes", "family", "changes"),
    [
        (2, "llama", {"max_grad_norm": 0.01}),
        (4, "llama", {"gradient_checkpointing": True}),
        (2, "gpt2", {"gradient_checkpointing": True, "weight_reg_form": "norm_ratio"}),
    ],
)
def test_sharded_weights_learn_the_masks_of_one_process_bit_for_bit(
    processes: int,
    family: str,
    changes: dict[str, Any],
    method: str,
    saved_model: Callable,
    sequences: Callable,
    learning_settings: Callable,
    priors: Callable,
    in_processes: Callable,
    same_masks: Callable,
    tmp_path: Path,
) -> None:
    folder, tile = saved_model(family), None if method == "maskllm" else 4
    settings = learning_settings(batch_size=8, micro_batch_size=1, steps=3, **changes)
    # Two sequences are held out: some processes have none.
    rest, whole = (sequences(20), settings), load_model(folder)
    start = priors(whole, 0.4)
    masks, curve = learned(whole, None, method, tmp_path / "one", *rest, **start)
    assert curve[0]["initial_held_out_loss"] and curve[-1]["held_out_loss"]

    def run(rank: int) -> tuple[MaskSet, list[dict[str, Any]]]:
        return learned(*load_sharded(folder, tile=tile), method, tmp_path / "many", *rest, **start)

    for found, found_curve in in_processes(processes, run):
        same_masks(found, masks)
        assert found_curve == curve


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "opt", "gpt2"])
def test_a_process_loads_its_rows_and_all_of_the_rest(
    family: str, dtype: str, saved_model: Callable, in_processes: Callable
) -> None:
    folder = saved_model(family)
    whole = load_model(folder, dtype)
    weights = {name: weight_matrix(linear) for name, linear in prunable_linears(whole).items()}

    def load(rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
        model, rows = load_sharded(folder, dtype, tile=4)
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
        assert all(linear.weight.is_meta for linear in prunable_linears(model).values())
        assert all(row.own.untyped_storage().nbytes() == row.own.nbytes for row in rows.values())
        gathered = {name: row.gathered() for name, row in rows.items()}
        assert all(torch.equal(gathered[name], weight) for name, weight in weights.items())
        rest = {name: value for name, value in model.state_dict().items() if not value.is_meta}
        buffers = dict(model.named_buffers())
        return {name: row.own for name, row in rows.items()}, rest | buffers

    parts = in_processes(4, load)
    for name, weight in weights.items():
        assert torch.equal(torch.cat([own[name] for own, _ in parts]), weight)
    expected = whole.state_dict() | dict(whole.named_buffers())
    expected = {name: value for name, value in expected.items() if name.removesuffix(".weight") not in weights}
    for _, rest in parts:
        assert rest.keys() == expected.keys()
        assert all(
            torch.equal(value, expected[name]) and value.dtype == expected[name].dtype for name, value in rest.items()
        )


def test_shared_parameters_stay_shared(saved_model: Callable) -> None:
    model, _ = load_sharded(saved_model("qwen2"))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_weights_that_are_missing_or_integers(name: str, saved_model: Callable) -> None:
    folder = saved_model()
    path = folder / "model.safetensors"
    content = load_file(path)
    save_file(content | {name: content[name].to(torch.int32)}, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"{name} has the type I32; expected floating-point numbers"):
        load_sharded(folder)
    save_file({key: value for key, value in content.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"its files lack the weight {name}"):
        load_sharded(folder)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_of_another_shape(name: str, saved_model: Callable) -> None:
    path = saved_model() / "model.safetensors"
    content = load_file(path)
    save_file(content | {name: torch.ones(3)}, path, {"format": "pt"})
    with pytest.raises(InputError, match=rf"{name} has the shape \[3\]; expected \[(24|48, 24)\]"):
        load_sharded(path.parent)
