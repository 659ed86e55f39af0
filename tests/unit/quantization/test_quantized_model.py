"""Tests of quantised models against models with hand-made weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.masks.nm import NM, nm_mask
from patch.models.loading import prunable_linears, weight_matrix
from patch.quantization.absmax import quantize
from patch.quantization.model import QuantizedLayer, apply_layers, compensate_layer, detach_adapter, quantize_model
from patch.quantization.quantization_settings import Quantization
from patch.quantization.slim_lora import saliency, slim_lora

FAMILIES = ["qwen2", "llama", "gemma3_text", "gpt2"]
Models = Callable[..., nn.Module]
Compress = Callable[..., dict[str, QuantizedLayer]]


def logits(model: nn.Module, sequences: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.as_tensor(sequences.astype(np.int64)), use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_quantize_model_rounds_each_layer_and_keeps_the_pattern(family: str, tiny_model: Models) -> None:
    model = tiny_model(family)
    expected, masks = {}, {}
    for name, linear in prunable_linears(model).items():
        matrix = weight_matrix(linear)
        masks[name] = nm_mask(matrix.abs(), NM(2, 4))
        matrix.masked_fill_(~masks[name], 0)
        expected[name] = quantize(matrix, 4, 10).dequantize()
    layers = quantize_model(model, 4, 10)
    assert list(layers) == list(prunable_linears(model))
    for name, linear in prunable_linears(model).items():
        assert torch.equal(weight_matrix(linear), expected[name])
        assert torch.equal(layers[name].weight.dequantize(), expected[name])
        assert layers[name].adapter is None
        assert (weight_matrix(linear)[~masks[name]] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_the_dense_sum(
    family: str, tiny_model: Models, compensated: Compress, sequences: Callable[..., np.ndarray]
) -> None:
    model, reference = tiny_model(family), tiny_model(family)
    names = list(prunable_linears(model))
    layers = compensated(model)
    assert list(layers) == names
    assert list(prunable_linears(model)) == names
    reference.double()
    for name, linear in prunable_linears(reference).items():
        layer = layers[name]
        dense = layer.weight.dequantize().double()
        dense += layer.adapter.left.double() @ layer.adapter.right.double()
        weight_matrix(linear).copy_(dense)
    expected = logits(reference, sequences())
    assert torch.allclose(logits(model, sequences()).double(), expected, atol=1e-3)
    assert torch.allclose(logits(model.double(), sequences()), expected, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_stay_sparse_beside_their_adapters(family: str, tiny_model: Models, compensated: Compress) -> None:
    model = tiny_model(family)
    masks = {name: nm_mask(weight_matrix(m).abs(), NM(2, 4)) for name, m in prunable_linears(model).items()}
    compensated(model)
    for name, linear in prunable_linears(model).items():
        assert (weight_matrix(linear)[~masks[name]] == 0).all()
        assert not linear.adapter_left.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_bring_the_outputs_closer(
    family: str, tiny_model: Models, compensated: Compress, sequences: Callable[..., np.ndarray]
) -> None:
    expected = logits(tiny_model(family), sequences())
    errors = []
    for ratio in (0.0, 0.25, 0.5, 1.0):
        model = tiny_model(family)
        compensated(model, Quantization(bits=4, group_size=10, rank_ratio=ratio))
        errors.append(float((logits(model, sequences()) - expected).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


def test_the_layers_of_a_block_are_fitted_to_their_inputs(tiny_model: Models, sequences: Callable) -> None:
    """The first layer's adapter follows from statistics that plain hooks collect on the dense model."""
    model = tiny_model()
    name, linear = next(iter(prunable_linears(model).items()))
    squares = torch.zeros(weight_matrix(linear).shape[1])

    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        squares.add_(inputs[0].square().sum((0, 1)))

    handle = linear.register_forward_pre_hook(add)
    logits(model, sequences())
    handle.remove()
    statistics = InputStatistics(squares, None, len(sequences()))
    weight = weight_matrix(linear).clone()
    pruned = weight * nm_mask(weight.abs(), NM(2, 4))
    settings = Quantization(bits=4, group_size=10, rank_ratio=0.25)
    layer = compensate_layer(weight, pruned, statistics, settings)
    assert torch.equal(layer.weight.dequantize(), quantize(pruned, 4, 10).dequantize())
    expected = slim_lora(weight, quantize(pruned, 4, 10).dequantize(), saliency(statistics), 0.25)
    assert torch.equal(layer.adapter.left @ layer.adapter.right, expected.left @ expected.right)
    rounding = settings.model_copy(update={"quantize_adapters": True})
    rounded = compensate_layer(weight, pruned, statistics, rounding)
    assert torch.equal(rounded.adapter.left, expected.quantized(4, 10).left)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_get_adapters_of_their_dtype(
    dtype: torch.dtype, tiny_model: Models, compensated: Compress, sequences: Callable[..., np.ndarray]
) -> None:
    model, full = tiny_model().to(dtype), tiny_model()
    layers = compensated(model)
    apply_layers(full, layers)
    assert {layer.adapter.left.dtype for layer in layers.values()} == {dtype}
    assert {linear.adapter_right.dtype for linear in prunable_linears(model).values()} == {dtype}
    difference = logits(model, sequences()).float() - logits(full, sequences())
    assert difference.norm() < 0.03 * logits(full, sequences()).norm()


def test_layers_of_rank_zero_have_no_adapter(tiny_model: Models, compensated: Compress) -> None:
    model = tiny_model()
    layers = compensated(model, Quantization(bits=4, group_size=10, rank_ratio=0.01))
    assert all(layer.adapter is None for layer in layers.values())
    assert not any(hasattr(linear, "adapter_left") for linear in prunable_linears(model).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_applying_layers_gives_the_same_outputs_and_can_be_repeated(
    family: str, tiny_model: Models, compensated: Compress, sequences: Callable[..., np.ndarray]
) -> None:
    model, other = tiny_model(family), tiny_model(family, seed=1)
    with torch.no_grad():
        # All other parameters are unchanged.
        other.load_state_dict(model.state_dict())
    layers = compensated(model)
    expected = logits(model, sequences())
    for _ in range(2):
        apply_layers(other, layers)
        assert torch.equal(logits(other, sequences()), expected)
    assert torch.equal(logits(copy.deepcopy(other), sequences()), expected)
    for linear in prunable_linears(other).values():
        detach_adapter(linear)
    apply_layers(model, {name: QuantizedLayer(layer.weight) for name, layer in layers.items()})
    assert torch.equal(logits(other, sequences()), logits(model, sequences()))
    assert not torch.equal(logits(model, sequences()), expected)
    assert model.state_dict().keys() == tiny_model(family).state_dict().keys()


def test_a_copy_can_lose_its_adapters_alone(
    tiny_model: Models, compensated: Compress, sequences: Callable[..., np.ndarray]
) -> None:
    model = tiny_model()
    compensated(model)
    expected = logits(model, sequences())
    twin = copy.deepcopy(model)
    for linear in prunable_linears(twin).values():
        detach_adapter(linear)
    assert torch.equal(logits(model, sequences()), expected)
    assert not torch.equal(logits(twin, sequences()), expected)


def test_layers_of_another_model_are_refused(tiny_model: Models) -> None:
    layers = quantize_model(tiny_model())
    other = tiny_model("llama")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(InputError, match="of another model: .* is \\[.*\\], its codes \\["):
        apply_layers(other, layers)
    with pytest.raises(InputError, match="only in the quantised layers"):
        apply_layers(tiny_model("gpt2"), quantize_model(tiny_model("gpt2")) | {"zz": next(iter(layers.values()))})
    layers.pop(name := next(iter(layers)))
    with pytest.raises(InputError, match=f"layer {name} is only in the model"):
        apply_layers(tiny_model(), layers)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_the_error_names_the_layer_that_is_not_finite(tiny_model: Models, compensated: Compress) -> None:
    model = tiny_model()
    name, linear = list(prunable_linears(model).items())[-1]
    linear.weight[1, 2] = float("nan")
    with pytest.raises(InputError, match=f"layer {name}: quantisation: the weight at row 1, column 2 is nan"):
        quantize_model(model)
