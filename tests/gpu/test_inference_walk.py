"""Evaluation and packed models on `device: cuda`: how often the host waits, and the results of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from patch.data.tokenizer import train_tokenizer
from patch.evaluation.harness import wrap_model
from patch.evaluation.perplexity import perplexity
from patch.inference.convert import convert
from patch.inference.generation import Generation, random_prompt
from patch.inference.linear import HybridLinear, use_backend
from patch.masks.nm import NM
from patch.masks.packed import MaskSet, apply_masks
from patch.masks.tile import expand_tiles, tile_grid
from patch.models.dispatch import dispatch_blocks
from patch.models.loading import prunable_linears, weight_matrix
from patch.pruning.magnitude import magnitude
from patch.quantization.model import attach_adapter, quantize_model
from patch.quantization.slim_lora import Adapter

from .conftest import LAYERS
from .cuda_tensor import CPU, CUDA
from .cuda_walk import CudaWalk

TILE = 16


def _masks(model: nn.Module) -> MaskSet:
    """Return hybrid masks of a model: every other tile of each layer is dense."""
    masks, tiles = {}, {}
    for name, linear in prunable_linears(model).items():
        weight = weight_matrix(linear).cpu()
        grid = tile_grid(weight.shape, TILE)
        tiles[name] = torch.arange(grid[0] * grid[1]).view(grid) % 2 == 0
        masks[name] = magnitude(weight, NM(2, 4)) | expand_tiles(tiles[name], weight.shape)
    return MaskSet(masks, "hybrid", tiles, TILE)


def test_perplexity_waits_once(llama: Callable, sequences: Callable, walk: CudaWalk) -> None:
    model, ids = llama(), sequences(6)
    expected = perplexity(llama(device="cpu"), ids, 2)
    walk.synchronizations.clear()
    actual = perplexity(model, ids, 2)
    assert np.allclose(actual.values, expected.values, rtol=1e-5)
    library = sum(count for line, count in walk.synchronizations.items() if " in transformers/" in line)
    assert (sum(walk.synchronizations.values()) - library, library) == (1, 3), walk.synchronizations


def test_the_model_of_the_tasks_gives_the_likelihoods_of_a_cpu(llama: Callable, walk: CudaWalk) -> None:
    requests = [(("", ""), [1, 2, 3], [4, 5]), (("", ""), [6, 7], [8])]
    tokenizer = train_tokenizer(["some words"], 300)

    def measure(device: str) -> list[tuple[float, bool]]:
        adapter = wrap_model(llama(device=device, vocab_size=300), tokenizer, 1)
        assert adapter.device.type == device
        return adapter._loglikelihood_tokens(requests, disable_tqdm=True)

    expected, actual = measure("cpu"), measure("cuda")
    assert [greedy for _, greedy in actual] == [greedy for _, greedy in expected]
    assert [value for value, _ in actual] == pytest.approx([value for value, _ in expected], rel=1e-5)


def test_a_model_on_two_devices_gives_the_numbers_of_one(
    llama: Callable, sequences: Callable, walk: CudaWalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first blocks are on the GPU and the last ones on the CPU, with hooks of adapters within a block."""

    def place(module: nn.Module, name: str, device: torch.device, **options: Any) -> None:
        module.get_submodule(name.rpartition(".")[0])._apply(lambda tensor: tensor.to(device), recurse=False)

    # Accelerate makes parameters of the type of a tensor, which needs a real one.
    monkeypatch.setattr("accelerate.hooks.set_module_tensor_to_device", place)
    tokenizer, ids, found = train_tokenizer(["some words"], 300), sequences(6), []
    for devices in ([CPU], [CUDA, CPU]):
        model = llama(blocks=6, device="cpu", vocab_size=300, tie_word_embeddings=True)
        for linear in prunable_linears(model).values():
            rows, columns = linear.weight.shape
            attach_adapter(linear, Adapter(torch.full((rows, 2), 0.01), torch.full((2, columns), 0.01)))
        dispatch_blocks(model, devices)
        placed = {parameter.device for parameter in model.parameters()}
        assert placed == set(devices) and model.lm_head.weight is model.model.embed_tokens.weight
        adapter = wrap_model(model, tokenizer, 1)
        assert adapter.device == devices[0]
        likelihoods = adapter._loglikelihood_tokens([(("", ""), [1, 2, 3], [4, 5])], disable_tqdm=True)
        found.append([*perplexity(model, ids, 2).values, likelihoods[0][0]])
        assert model(torch.from_numpy(ids.astype(np.int64)).to(devices[0])).logits.device == devices[0]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("backend", [None, "unpacked"])
def test_a_packed_model_gives_the_logits_of_the_masked_one(
    backend: str | None, quantized: bool, llama: Callable, sequences: Callable, walk: CudaWalk
) -> None:
    dense, model = llama(), llama()
    masks = _masks(model)
    tokens = torch.from_numpy(sequences(2).astype(np.int64)).to("cuda")
    for one in (dense, model):
        apply_masks(one, masks)
    layers = quantize_model(dense, 4, 16) if quantized else None
    convert(model, masks, layers)
    packed = [layer for layer in model.modules() if isinstance(layer, HybridLinear)]
    assert len(packed) == 2 * LAYERS and all(part.is_cuda for layer in packed for part in layer.buffers())
    use_backend(model, backend)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits.cpu(), dense(tokens).logits.cpu(), rtol=1e-4, atol=1e-4)
        walk.synchronizations.clear(), walk.launches.clear()
        model(tokens)
    if backend is None and not quantized:
        products = sum(count for line, count in walk.launches.items() if line.endswith("packed product"))
        assert products == 2 * LAYERS
        assert not [line for line in walk.synchronizations if line.startswith("inference")], walk.synchronizations


@pytest.mark.parametrize("graph", [False, True])
def test_generation_waits_at_its_end(graph: bool, llama: Callable, walk: CudaWalk, capsys: Any) -> None:
    expected = llama(device="cpu")
    model = convert(llama(), _masks(expected))
    apply_masks(expected, _masks(expected))
    tokens = random_prompt(expected, 2, 5)
    reference = Generation(expected, tokens, 4)
    reference()
    generation = Generation(model, tokens.to("cuda"), 4, graph=graph)
    generation()
    assert "not captured" not in capsys.readouterr().out
    assert torch.equal(generation.new.cpu(), reference.new)
    walk.synchronizations.clear()
    generation()
    assert sum(walk.synchronizations.values()) == 1, walk.synchronizations
