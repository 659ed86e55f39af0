"""Tests that a model on several devices is divided as planned and gives the numbers of one device.

The devices are the CPU, several times. In `tests/gpu/test_inference_walk.py` they differ.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from patch.evaluation.perplexity import perplexity
from patch.models.dispatch import device_map, dispatch_blocks
from patch.models.loading import decoder_blocks
from patch.models.shapes import Shape, parameters
from patch.pipeline.resources.memory import activation_bytes, evaluation_mb

BLOCKS = 8
# Hidden size, intermediate size, blocks, heads, key heads, head size, vocabulary, tied embeddings.
LARGE = {
    "llama": (8192, 28672, 80, 64, 8, 128, 128256, False),
    "qwen2": (5120, 27648, 64, 40, 8, 128, 152064, False),
    "gemma3_text": (5376, 21504, 62, 32, 16, 128, 262208, True),
}


def deep(tiny_model: Callable, family: str) -> torch.nn.Module:
    """Return a random model with so many blocks that none is as large as a device's part."""
    layers = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * (BLOCKS // 2)} if family == "gemma3_text" else {}
    return tiny_model(family, **{layers: BLOCKS}, **kinds)


def places(model: torch.nn.Module) -> dict[str, int]:
    """Return the number of the device of each parameter, of three devices."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    placed = device_map(model, 3).items()
    return {name: device for module, device in placed for name in names if name.startswith(f"{module}.")}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "opt", "gpt2"])
def test_numbers_are_those_of_one_device(family: str, tiny_model: Callable, sequences: Callable) -> None:
    ids, model = sequences(5), deep(tiny_model, family)
    expected, embedding = perplexity(model, ids, 2), model.get_input_embeddings().weight
    tied = embedding is model.get_output_embeddings().weight
    found, (prefix, blocks) = places(model), decoder_blocks(model)
    assert set(found) == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    of_blocks = [{found[name] for name in found if name.startswith(f"{prefix}.{i}.")} for i in range(len(blocks))]
    assert all(len(devices) == 1 for devices in of_blocks)
    order = [device for devices in of_blocks for device in devices]
    assert order == sorted(order) and set(found.values()) == {0, 1, 2}
    dispatch_blocks(model, 3 * [torch.device("cpu")])
    assert all(hasattr(block, "_hf_hook") for block in blocks)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight
    assert (embedding is model.get_output_embeddings().weight) == tied == (family != "llama")
    assert perplexity(model, ids, 2) == expected


@pytest.mark.parametrize("family", LARGE)
def test_no_device_has_more_weights_than_planned(family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = dict(zip((*names, "head_dim", "vocab_size", "tie_word_embeddings"), LARGE[family], strict=True))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), dtype=torch.bfloat16)
    shape = Shape(**sizes)
    for gpus in range(2, 9):
        held, counted = dict.fromkeys(range(gpus), 0), set()
        for name, gpu in device_map(model, gpus).items():
            for parameter in model.get_submodule(name).parameters():
                held[gpu] += 2 * parameter.numel() * (id(parameter) not in counted)
                counted.add(id(parameter))
        assert sum(held.values()) == pytest.approx(2 * parameters(shape), rel=1e-3)
        planned = 1e6 * evaluation_mb(shape, 2, 100, gpus) - 100 * activation_bytes(shape, 2, True)
        assert sum(held.values()) / gpus <= max(held.values()) <= planned
