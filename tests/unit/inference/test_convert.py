"""Converted models: equal to masked models, in less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.inference.convert import convert
from patch.inference.linear import HybridLinear
from patch.masks.packed import MaskSet, apply_masks
from patch.models.loading import prunable_linears, weight_matrix

# Family, tile (None for 2:4 everywhere) and sizes, so that each kernel is used.
LARGER = {"hidden_size": 64, "intermediate_size": 128}
CASES = [
    ("llama", 4, {}),
    ("llama", 32, LARGER | {"num_attention_heads": 4, "num_key_value_heads": 2}),
    ("llama", None, LARGER | {"num_attention_heads": 4, "num_key_value_heads": 2}),
    ("gpt2", 8, {}),
    ("gpt2", 32, {"n_embd": 64, "n_inner": 128, "n_head": 4}),
    ("gpt2", None, {}),
    ("gemma3_text", 8, {}),
    ("gemma3_text", 32, LARGER),
    ("opt", 8, {}),
    ("opt", None, {"hidden_size": 36, "ffn_dim": 260}),
    ("qwen2", 4, {}),
    ("qwen2", 64, LARGER),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{'larger' if case[2] else 'tiny'}")
def case(request: pytest.FixtureRequest, tiny_model: Callable, model_masks: Callable) -> tuple[nn.Module, MaskSet]:
    """Return a model and its masks."""
    family, tile, changes = request.param
    model = tiny_model(family, **changes)
    return model, model_masks(model, tile)


def both(model: nn.Module, masks: MaskSet) -> tuple[nn.Module, nn.Module]:
    """Return the masked model and the converted one."""
    masked, converted = copy.deepcopy(model), copy.deepcopy(model)
    apply_masks(masked, masks)
    assert convert(converted, masks) is converted
    return masked, converted


def tokens_for(rows: int, length: int) -> Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(0))


def owned(layers: Iterable[HybridLinear]) -> dict[int, int]:
    """Return the addresses and bytes of all storages that the layers hold."""
    found = {}
    for layer in layers:
        tensors = [tensor for name, tensor in layer.named_buffers() if name != "bias"]
        tensors += [
            value for value in (*vars(layer).values(), *vars(layer.packed).values()) if isinstance(value, Tensor)
        ]
        for storage in (tensor.untyped_storage() for tensor in tensors):
            found[storage.data_ptr()] = storage.nbytes()
    return found


def test_logits_in_fp32(case: tuple) -> None:
    masked, converted = both(*case)
    for tokens in (tokens_for(1, 1), tokens_for(2, 5), tokens_for(3, 24)):
        expected = masked(tokens).logits
        torch.testing.assert_close(converted(tokens).logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert not torch.allclose(case[0](tokens).logits, expected, atol=1e-2), "the masks do something"


def test_logits_in_bf16(case: tuple) -> None:
    """The error against fp32 is at most 1.5 times that of the masked model."""
    model, masks = case
    model.bfloat16()
    masked, converted = both(model, masks)
    tokens = tokens_for(2, 12)
    exact = copy.deepcopy(masked).float()(tokens).logits
    found, expected = converted(tokens).logits, masked(tokens).logits
    assert found.dtype == torch.bfloat16
    error, usual = (found - exact).square().mean().sqrt(), (expected - exact).square().mean().sqrt()
    assert error < 1.5 * usual + 1e-6 and (found - expected).abs().max() < 2**-4 * exact.abs().max()


def test_the_same_tokens_are_generated(case: tuple) -> None:
    masked, converted = both(*case)
    found = [
        model.generate(tokens_for(2, 5), do_sample=False, max_new_tokens=12, min_new_tokens=12)
        for model in (masked, converted)
    ]
    assert found[0].shape == (2, 17) and torch.equal(*found)


def test_which_layers_are_packed(case: tuple) -> None:
    """Layers with a sparse tile are packed; all other modules stay unchanged."""
    model, masks = case
    first, names = next(iter(masks.masks)), list(prunable_linears(model))
    before = {name: (type(module), module.training) for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    convert(model.requires_grad_(True), masks)
    for name, (kind, _) in before.items():
        packed = name in names and not (masks.pattern == "hybrid" and bool(masks.tiles[name].all()))
        assert type(model.get_submodule(name)) is (HybridLinear if packed else kind)
        if name == first and masks.pattern == "hybrid":
            assert not packed, "all its tiles are dense"
    for name, tensor in model.state_dict().items():
        if name in state and not isinstance(model.get_submodule(name.rpartition(".")[0]), HybridLinear):
            assert torch.equal(tensor, state[name])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_masks_that_are_dense_throughout_change_nothing(tiny_model: Callable, model_masks: Callable) -> None:
    model = tiny_model("llama")
    masks = model_masks(model, 4, fraction=1.0)
    weights = {name: linear.weight.clone() for name, linear in prunable_linears(model).items()}
    convert(model, masks)
    assert not any(isinstance(module, HybridLinear) for module in model.modules())
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in weights.items())


def test_rows_that_no_tile_divides(tiny_model: Callable) -> None:
    """Neither 128 nor 4 divides 130; the next layer has 132 columns, two of them constant."""
    model = tiny_model("opt", hidden_size=44, num_attention_heads=2, ffn_dim=132)
    blocks = [block for block in model.modules() if hasattr(block, "fc1")]
    for block in blocks:
        block.fc1, block.fc2 = nn.Linear(44, 130), nn.Linear(132, 44)
        block.activation_fn = nn.ConstantPad1d((0, 2), 0.5)
    model.eval().requires_grad_(False)
    generator, kept = torch.Generator().manual_seed(0), {}
    for name, linear in prunable_linears(model).items():
        groups = torch.rand(linear.weight.numel() // 4, 4, generator=generator)
        kept[name] = (groups.argsort(-1) < 2).view_as(linear.weight)
    masked, converted = both(model, MaskSet(kept, "2:4"))
    assert sum(isinstance(module, HybridLinear) for module in converted.modules()) == len(kept)
    expected = masked(tokens_for(2, 5)).logits
    torch.testing.assert_close(converted(tokens_for(2, 5)).logits, expected, rtol=0, atol=1e-4)


def test_a_transposed_layer_is_read_across(tiny_model: Callable, model_masks: Callable) -> None:
    model = tiny_model("gpt2")
    masks = model_masks(model, None)
    weights = {name: weight_matrix(linear).clone() for name, linear in prunable_linears(model).items()}
    convert(model, masks)
    for name, weight in weights.items():
        layer = model.get_submodule(name)
        assert (layer.out_features, layer.in_features) == tuple(weight.shape)
        alone = layer(torch.eye(weight.shape[1])) - layer.bias
        torch.testing.assert_close(alone, (weight * masks.masks[name]).T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_memory(family: str, dtype: torch.dtype, tiny_model: Callable, model_masks: Callable) -> None:
    """All memory of the layers, including offsets and maps of tiles, is within 2 % of the formula."""
    sizes = {"n_embd": 128, "n_inner": 256, "n_head": 4} if family == "gpt2" else LARGER | {"hidden_size": 128}
    model = tiny_model(
        family, **sizes | ({"num_attention_heads": 4, "num_key_value_heads": 4} if family == "llama" else {})
    ).to(dtype)
    masks = model_masks(model, 64)
    convert(model, masks)
    model(tokens_for(2, 3))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, HybridLinear)}
    saved = 0.4375 if dtype == torch.bfloat16 else 0.46875
    formula = 0.0
    for name in layers:
        sparse = float((~masks.tiles[name]).double().mean())
        formula += masks.masks[name].numel() * dtype.itemsize * (1 - sparse * saved)
    assert layers and formula <= sum(owned(layers.values()).values()) <= 1.02 * formula


def refused(model: nn.Module, masks: MaskSet, match: str) -> None:
    """Check that a conversion is refused and changes nothing."""
    before = {name: (type(module), module) for name, module in model.named_modules()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=match):
        convert(model, masks)
    assert {name: (type(module), module) for name, module in model.named_modules()} == before
    after = model.state_dict()
    assert set(after) == set(state) and all(torch.equal(after[name], tensor) for name, tensor in state.items())


def test_masks_that_have_no_faster_form(tiny_model: Callable, model_masks: Callable) -> None:
    model = tiny_model("llama")
    masks = model_masks(model, None)
    refused(model, replace(masks, pattern="unstructured"), "masks of the pattern unstructured have no faster form")
    refused(model, replace(masks, pattern="4:8"), "masks of the pattern 4:8 have no faster form")


def test_masks_that_are_not_of_the_model(tiny_model: Callable, model_masks: Callable) -> None:
    model = tiny_model("llama")
    for tile in (None, 4):
        others = tiny_model("llama", num_hidden_layers=3), tiny_model("llama", intermediate_size=32), tiny_model("opt")
        for other in others:
            refused(model, model_masks(other, tile), "the masks are of another model")
    last = list(prunable_linears(model))[-1]
    masks = model_masks(model, 4)
    del masks.masks[last]
    refused(model, masks, f"layer {last} is only in the model")


def test_a_model_is_not_converted_twice(tiny_model: Callable, model_masks: Callable) -> None:
    model = tiny_model("llama")
    masks = model_masks(model, 4)
    convert(model, masks)
    refused(model, masks, "is only in the masks")


def test_masks_that_break_their_pattern(tiny_model: Callable, model_masks: Callable) -> None:
    model = tiny_model("llama")
    last = list(prunable_linears(model))[-1]
    masks = model_masks(model, None)
    masks.masks[last][5, 8:12] = True
    refused(model, masks, f"mask of {last}: row 5, weights 8 to 11 break 2:4")
    masks = model_masks(model, 4)
    row, column = masks.tiles[last].nonzero()[0].tolist()
    masks.masks[last][4 * row, 4 * column] = False
    refused(model, masks, f"mask of {last}: a tile that is marked dense has zeros")


def test_tiles_that_do_not_fit_a_later_layer(tiny_model: Callable, model_masks: Callable) -> None:
    model = tiny_model("llama", hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2)
    masks = model_masks(model, 16)
    last = list(prunable_linears(model))[-1]
    masks.tiles[last] = torch.zeros(4, 4, dtype=torch.bool)
    masks.masks[last] = torch.tensor([True, True, False, False]).repeat(32, 16)
    refused(model, masks, r"the tile map has the shape \[4, 4\]; tile 16 cuts \[32, 64\] into \[2, 4\]")
