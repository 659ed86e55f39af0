"""Quantized models as packed ones: converted, saved, loaded, cast and compiled."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from patch.errors import InputError
from patch.inference import HybridLinear, convert, save, unpack
from patch.inference.custom_op import hybrid_linear
from patch.inference.packed_config import PackedConfig, PackedLayer, parse_config
from patch.inference.weight_files import check_folder
from patch.masks.packed import MaskSet, apply_masks
from patch.models.loading import prunable_linears, weight_matrix
from patch.quantization.model import QuantizedLayer, apply_layers
from patch.quantization.slim_lora import Adapter, adapter_rank

TOKENS = torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(0))
LARGER = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
# Family, tile (None for 2:4 everywhere), group size, sizes.
CASES = [("llama", 32, 32, LARGER), ("llama", 4, 5, {}), ("gpt2", 8, 128, {}), ("opt", None, 16, {})]
Made = tuple[nn.Module, MaskSet | None, dict[str, QuantizedLayer]]


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def made(tiny_model: Callable, model_masks: Callable) -> Callable[..., Made]:
    """Return a function that makes a tiny model, its masks and its quantized layers, with random adapters."""

    def make(
        family: str = "llama",
        tile: int | None = 32,
        group_size: int = 32,
        changes: dict[str, int] = LARGER,
        dtype: torch.dtype = torch.float32,
        rank_ratio: float = 0.1,
        bits: int = 4,
    ) -> Made:
        from patch.quantization.absmax import quantize

        model = tiny_model(family, **changes).to(dtype)
        masks, generator, layers = model_masks(model, tile), torch.Generator().manual_seed(0), {}
        for name, linear in prunable_linears(model).items():
            weight = weight_matrix(linear)
            rank = adapter_rank(*weight.shape, rank_ratio)
            factors = [torch.randn(s, generator=generator) for s in ((len(weight), rank), (rank, weight.shape[1]))]
            adapter = Adapter(*factors).to(dtype) if rank else None
            layers[name] = QuantizedLayer(quantize(weight * masks.masks[name], bits, group_size), adapter)
        return model, masks, layers

    return make


def load(folder: Path, **options: Any) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)


def layers_of(model: nn.Module) -> dict[str, HybridLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, HybridLinear)}


def applied(model: nn.Module, masks: MaskSet | None, layers: dict[str, QuantizedLayer]) -> nn.Module:
    """Return the model as it is evaluated: dense weights that are dequantized, and adapters in hooks."""
    model = copy.deepcopy(model)
    apply_layers(model, layers)
    if masks is not None:
        apply_masks(model, masks)
    return model


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    """Compare the state bit for bit."""
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("rank_ratio", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_converted_model_is_the_evaluated_one(case: tuple, rank_ratio: float, made: Callable, tmp_path: Path) -> None:
    model, masks, layers = made(*case, rank_ratio=rank_ratio)
    expected = applied(model, masks, layers)
    assert convert(model, masks, layers) is model
    found = layers_of(model)
    assert found.keys() == layers.keys()
    for name, layer in found.items():
        assert torch.equal(unpack(layer.packed), layers[name].weight.dequantize())
        assert (layer.adapter_left is not None) == (layers[name].adapter is not None) == (rank_ratio > 0)
    for tokens in (TOKENS, TOKENS[:1, :1]):
        logits = expected(tokens).logits
        torch.testing.assert_close(model(tokens).logits, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    save(model, tmp_path / "packed")
    loaded = load(tmp_path / "packed")
    assert_equal(loaded, model)
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def test_a_dense_quantized_model(made: Callable) -> None:
    model, _, layers = made(tile=None, rank_ratio=0)
    expected = applied(model, None, layers)
    convert(model, None, layers)
    assert all(layer.dense.all() and not layer.bits.numel() for layer in layers_of(model).values())
    torch.testing.assert_close(model(TOKENS).logits, expected(TOKENS).logits, rtol=0, atol=1e-4)


def test_a_folder_in_bf16(made: Callable, tmp_path: Path) -> None:
    model, masks, layers = made(dtype=torch.bfloat16)
    convert(model, masks, layers)
    save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["layers"]["model.layers.0.mlp.down_proj"] == {
        "shape": [64, 128],
        "tile": 32,
        "sparse_tiles": int((~masks.tiles["model.layers.0.mlp.down_proj"]).sum()),
        "bits": 4,
        "group_size": 32,
        "rank": 6,
    }
    check_folder(tmp_path, parse_config(config))
    loaded = load(tmp_path)
    assert_equal(loaded, model)
    dtypes = {name.rpartition(".")[2]: tensor.dtype for name, tensor in loaded.state_dict().items()}
    assert (dtypes["scales"], dtypes["values"], dtypes["adapter_left"]) == (torch.float32, torch.uint8, torch.bfloat16)
    # Another dtype is that of the inputs and adapters; codes and scales stay.
    other = load(tmp_path, dtype=torch.float32)
    assert_equal(other, model.to(torch.float32))
    assert other(TOKENS).logits.dtype == torch.float32


def change(folder: Path, part: str, function: Callable[[Tensor], Tensor]) -> str:
    """Change the first tensor of this name in a folder, and return its name."""
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for name in sorted(tensors):
            if name.endswith(f".{part}"):
                tensors[name] = function(tensors[name]).contiguous()
                save_file(tensors, path, {"format": "pt"})
                return name
    raise AssertionError(part)


@pytest.mark.parametrize(
    ("part", "function", "message"),
    [
        ("scales", lambda scales: -scales, "scales are damaged"),
        ("scales", lambda scales: scales * torch.nan, "scales are damaged"),
        ("scales", lambda scales: scales[:, :-1], r"has the shape \[128, 1\]; config.json needs \[128, 2\]"),
        ("values", lambda values: values[:-1], "has the shape"),
        ("adapter_left", lambda left: left[:-1], r"has the shape \[127, 6\]; config.json needs \[128, 6\]"),
        ("adapter_right", lambda right: right[:, :-1], r"has the shape \[6, 63\]; config.json needs \[6, 64\]"),
        ("bits", lambda bits: bits.zero_(), "bits are damaged"),
    ],
)
def test_damaged_folders_are_refused(
    part: str, function: Callable, message: str, made: Callable, tmp_path: Path
) -> None:
    model, masks, layers = made()
    save(convert(model, masks, layers), tmp_path)
    change(tmp_path, part, function)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 4}, "a quantized layer has bits and group_size"),
        ({"group_size": 8}, "a quantized layer has bits and group_size"),
        ({"rank": 2}, "alone may have a rank"),
        ({"bits": 8, "group_size": 8}, "bits"),
        ({"bits": 4, "group_size": 0}, "group_size"),
        ({"bits": 4, "group_size": 8, "rank": 0}, "rank"),
    ],
)
def test_wrong_descriptions_are_refused(fields: dict, message: str) -> None:
    layer = {"shape": [8, 16], "tile": 8, "sparse_tiles": 1}
    with pytest.raises(InputError, match=message):
        parse_config({"quant_method": "patch-hybrid", "format": 1, "layers": {"one": layer | fields}})


def test_descriptions(coded_weight: Callable) -> None:
    packed = coded_weight((24, 36), 12, 8).packed
    layer = HybridLinear(packed, adapter=Adapter(torch.zeros(24, 2), torch.zeros(2, 36)))
    sparse = int((~packed.dense).sum())
    described = PackedLayer(shape=[24, 36], tile=12, sparse_tiles=sparse, bits=4, group_size=8, rank=2)
    assert layer.description == described
    empty = HybridLinear.empty(described, False, torch.bfloat16)
    for name, spec in described.tensors().items():
        tensor = layer.state_dict()[name]
        assert spec.shape == tuple(tensor.shape) == tuple(empty.state_dict()[name].shape)
        assert spec.dtype in (None, str(tensor.dtype).removeprefix("torch."))
    assert empty.state_dict().keys() == layer.state_dict().keys() and empty.description == described
    assert PackedConfig(layers={"one": described}).to_dict()["layers"]["one"]["rank"] == 2
    assert "sparse_tiles=" in repr(layer) and "bits=4, group_size=8, rank=2" in repr(layer)


def test_layers_are_cast_copied_and_loaded(coded_weight: Callable) -> None:
    made = coded_weight((24, 36), 12, 8)
    adapter = Adapter(torch.randn(24, 2), torch.randn(2, 36))
    layer, inputs = HybridLinear(made.packed, torch.ones(24), adapter=adapter), torch.randn(3, 36)
    expected = inputs.double() @ (made.masked + (adapter.left @ adapter.right).double()).T + 1
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(inputs).double(), expected, rtol=0, atol=1e-3)
    cast = copy.deepcopy(layer).to(torch.bfloat16)
    assert cast.scales.dtype == torch.float32 and cast.adapter_left.dtype == torch.bfloat16
    assert torch.equal(unpack(cast.packed), unpack(layer.packed))
    assert cast(inputs.bfloat16()).dtype == torch.bfloat16
    other = HybridLinear(coded_weight((24, 36), 12, 8, seed=0).packed, torch.ones(24), adapter=adapter)
    state = layer.state_dict()
    other.load_state_dict(state | {"scales": 2 * layer.scales})
    assert torch.equal(unpack(other.packed), 2 * unpack(layer.packed))
    before = copy.deepcopy(other.state_dict())
    for wrong in ({"scales": -layer.scales}, {"scales": layer.scales[:, 1:]}, {"values": layer.values[1:]}):
        with pytest.raises(RuntimeError, match=r"scales|values"):
            other.load_state_dict(state | wrong)
        assert all(torch.equal(before[name], part) for name, part in other.state_dict().items())


def test_the_operator_is_the_layer(coded_weight: Callable) -> None:
    made = coded_weight((64, 128), 64, 64)
    layer, inputs = HybridLinear(made.packed), torch.randn(2, 3, 128)
    parts = (layer.values, layer.bits, layer.dense, 64, 64, None)
    with torch.no_grad():
        assert torch.equal(hybrid_linear(inputs, *parts, layer.scales, 64), layer(inputs))
        layer.scales.mul_(2)
        assert torch.equal(hybrid_linear(inputs, *parts, layer.scales, 64), layer(inputs))
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(inputs), layer(inputs))
        short = layer.scales[:, :1].clone()
        for scales, group_size in ((layer.scales, 32), (layer.scales, None), (None, 64), (short, 64)):
            with pytest.raises(InputError, match="scales|expected bool"):
                hybrid_linear(inputs, *parts, scales, group_size)
    arguments = (inputs, *parts, layer.scales, 64)
    assert set(torch.library.opcheck(torch.ops.patch_hybrid.linear.default, arguments).values()) == {"SUCCESS"}


def test_what_does_not_belong_together_is_refused(made: Callable, tiny_model: Callable) -> None:
    model, masks, layers = made()
    name = "model.layers.0.mlp.up_proj"
    state = copy.deepcopy(model.state_dict())
    other = {**layers, name: QuantizedLayer(copy.deepcopy(layers[name].weight))}
    other[name].weight.codes[~masks.masks[name]] = 1
    with pytest.raises(InputError, match=rf"of other masks: {name} has \d+ codes where its mask has zeros"):
        convert(model, masks, other)
    with pytest.raises(InputError, match="the quantized layers are of another model"):
        convert(model, masks, {key: layer for key, layer in layers.items() if key != name})
    with pytest.raises(InputError, match="nothing to pack"):
        convert(model, None)
    wide = made(bits=8)[2]
    with pytest.raises(InputError, match=r"q_proj: codes of 8 bits do not fit in four"):
        convert(model, masks, wide)
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    with pytest.raises(InputError, match=r"the adapter has the shapes \[3, 2\] and \[2, 36\]; the layer is"):
        convert_layer = next(iter(layers_of(convert(model, masks, layers)).values()))
        HybridLinear(convert_layer.packed, adapter=Adapter(torch.zeros(3, 2), torch.zeros(2, 36)))
