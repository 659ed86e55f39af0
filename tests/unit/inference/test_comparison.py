"""Converted models beside the dense one: shared tensors, equal logits, bytes and backends."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from patch.errors import InputError
from patch.inference.comparison import (
    backend_counts,
    logits_difference,
    masked_copy,
    peak_bytes,
    share_tensors,
    weight_bytes,
)
from patch.inference.convert import convert
from patch.inference.generation import Generation, random_prompt
from patch.inference.linear import HybridLinear
from patch.masks.nm import NM, Unstructured
from patch.masks.packed import MaskSet
from patch.masks.tile import expand_tiles, tile_grid
from patch.models.loading import prunable_linears, weight_matrix
from patch.pruning.prune import prune

TILE = 4


def hybrid(model: nn.Module) -> MaskSet:
    """Return 2:4 masks by magnitude with every third tile dense, and all tiles of the first layer."""
    masks = prune(copy.deepcopy(model), "magnitude", NM(2, 4)).masks
    tiles = {
        name: torch.arange(mask.numel() // TILE**2).view(tile_grid(mask.shape, TILE)) % 3 == 0
        for name, mask in masks.items()
    }
    first = next(iter(tiles))
    tiles[first] = torch.ones_like(tiles[first])
    whole = {name: mask | expand_tiles(tiles[name], mask.shape) for name, mask in masks.items()}
    return MaskSet(whole, "hybrid", tiles, TILE)


@pytest.fixture(params=["qwen2", "gpt2"])
def model(request: pytest.FixtureRequest, tiny_model: Callable) -> nn.Module:
    """Return a tiny model with weights as `[out, in]`, and one with weights as `[in, out]`."""
    return tiny_model(request.param)


def test_a_converted_model_agrees_and_leaves_the_dense_one_alone(model: nn.Module, tiny_model: Callable) -> None:
    masks, tokens = hybrid(model), random_prompt(model, 2, 5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = convert(share_tensors(model), masks)
    difference, largest = logits_difference(model, masks, other, tokens, "a run")
    assert difference < 1e-4 * largest
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    dense = Generation(model, tokens, 2).first_logits()
    assert (Generation(other, tokens, 2).first_logits() - dense).abs().max() > 100 * difference
    names = list(prunable_linears(model))
    kinds = {name: isinstance(other.get_submodule(name), HybridLinear) for name in names}
    assert kinds == dict.fromkeys(names, True) | {names[0]: False}
    counts = backend_counts(model, other, rows=2)
    assert counts.pop("dense") == 1 and sum(counts.values()) == len(names) - 1
    assert backend_counts(model, model, rows=2) == {"dense": len(names)}


def test_what_is_not_masked_is_there_once(model: nn.Module) -> None:
    embedding = model.get_input_embeddings().weight
    for other in (
        share_tensors(model),
        convert(share_tensors(model), hybrid(model)),
        masked_copy(model, hybrid(model)),
    ):
        assert other.get_input_embeddings().weight is embedding and other is not model
        assert other.get_output_embeddings().weight is embedding


def test_a_model_that_differs_is_refused(model: nn.Module) -> None:
    masks, tokens = hybrid(model), random_prompt(model, 2, 5)
    with pytest.raises(RuntimeError, match="a run: the converted model's logits differ by"):
        logits_difference(model, masks, model, tokens, "a run")
    broken = convert(share_tensors(model), masks)
    next(m for m in broken.modules() if isinstance(m, HybridLinear)).values.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="differ by nan"):
        logits_difference(model, masks, broken, tokens, "a run")


def test_bytes_of_the_layers(model: nn.Module) -> None:
    masks = hybrid(model)
    found = weight_bytes(model, convert(share_tensors(model), masks))
    assert found["dense"] == sum(4 * weight_matrix(linear).numel() for linear in prunable_linears(model).values())
    assert found["measured"] == found["expected"] < found["dense"]
    assert weight_bytes(model, model) == dict.fromkeys(("dense", "measured", "expected"), found["dense"])


def test_memory_on_the_cpu_is_that_of_the_tensors(model: nn.Module) -> None:
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    called: list[int] = []
    own = sum(t.numel() * t.element_size() for t in tensors.values())
    assert peak_bytes(model, lambda: called.append(1)) == own and not called
    assert peak_bytes(convert(share_tensors(model), hybrid(model)), lambda: None) < own


def test_unstructured_masks_have_no_faster_form(model: nn.Module) -> None:
    masks = MaskSet(prune(copy.deepcopy(model), "magnitude", Unstructured(0.5)).masks, "unstructured")
    with pytest.raises(InputError, match="no faster form"):
        convert(share_tensors(model), masks)
