"""Tests of the structural search for prunable layers, and of loading from local folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from patch.errors import InputError
from patch.models.loading import decoder_blocks, load_model, prunable_linears

PROJECTIONS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


@pytest.mark.parametrize(("family", "blocks"), [("qwen2", 2), ("llama", 2), ("gemma3_text", 3)])
def test_linears_of_the_blocks_in_order(family: str, blocks: int, tiny_model: Callable) -> None:
    model = tiny_model(family)
    prefix, found = decoder_blocks(model)
    assert prefix == "model.layers" and len(found) == blocks
    linears = prunable_linears(model)
    assert list(linears) == [f"model.layers.{index}.{name}" for index in range(blocks) for name in PROJECTIONS]
    assert all(model.get_submodule(name) is linear for name, linear in linears.items())


def test_a_layer_of_the_vocabulary_s_size_is_pruned_and_the_output_layer_is_not(tiny_model: Callable) -> None:
    """An MLP as wide as the vocabulary is an MLP: sizes are not used."""
    model = tiny_model("llama", intermediate_size=50, vocab_size=50)
    linears = prunable_linears(model)
    assert "model.layers.0.mlp.gate_proj" in linears and linears["model.layers.0.mlp.gate_proj"].out_features == 50
    assert "lm_head" not in linears and not any(linear is model.lm_head for linear in linears.values())


def test_a_smaller_list_of_linears_is_not_the_stack() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
            self.tower = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(9, 9)) for _ in range(2)])})
            self.norms = nn.ModuleList([nn.LayerNorm(4)])

    assert list(prunable_linears(Model())) == ["tower.blocks.0.0", "tower.blocks.1.0"]


@pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.ModuleDict({"a": nn.ModuleList([nn.LayerNorm(4)])})])
def test_no_blocks(model: nn.Module) -> None:
    with pytest.raises(InputError, match="no stack of decoder blocks"):
        decoder_blocks(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loaded_frozen_in_evaluation_mode(dtype: str, tiny_model: Callable, tmp_path: Path) -> None:
    original = tiny_model()
    original.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    for name, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.to(getattr(torch, dtype))), name


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no config.json in it"):
        load_model(tmp_path)
