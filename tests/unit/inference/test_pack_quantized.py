"""Folders in the form `pack-quantized`: their tensors, and their weights as compressed-tensors reads them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from patch.errors import InputError
from patch.inference import convert
from patch.inference.pack_quantized import save_pack_quantized
from patch.models.loading import prunable_linears, weight_matrix
from patch.quantization.absmax import quantize
from patch.quantization.model import QuantizedLayer, apply_layers
from patch.quantization.slim_lora import Adapter

TOKENS = torch.randint(0, 50, (2, 5), generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def made(tiny_model: Callable, model_masks: Callable) -> Callable[..., tuple[nn.Module, dict[str, QuantizedLayer]]]:
    """Return a function that makes a tiny model and its quantized layers, pruned by hybrid masks."""

    def make(
        group_size: int = 32, dtype: torch.dtype = torch.float32, family: str = "llama", bits: int = 4
    ) -> tuple[nn.Module, dict[str, QuantizedLayer]]:
        model = tiny_model(family, **(SIZES if family == "llama" else {})).to(dtype)
        masks = model_masks(model, 32 if family == "llama" else 4).masks
        found = {name: weight_matrix(linear) * masks[name] for name, linear in prunable_linears(model).items()}
        return model, {name: QuantizedLayer(quantize(weight, bits, group_size)) for name, weight in found.items()}

    return make


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def dequantized_slowly(tensors: dict[str, Tensor], name: str, group_size: int) -> Tensor:
    """Read the codes one by one: the first of a word in its lowest bits, all shifted by eight."""
    packed, scales = (tensors[f"{name}.weight_{part}"] for part in ("packed", "scale"))
    rows, columns = tensors[f"{name}.weight_shape"].tolist()
    found = torch.zeros(rows, columns, dtype=torch.float64)
    for row, words in enumerate(packed.tolist()):
        for column in range(columns):
            code = (words[column // 8] >> 4 * (column % 8) & 15) - 8
            found[row, column] = code * scales[row, column // group_size].double()
    return found.float()


@pytest.mark.parametrize(("group_size", "written"), [(32, 32), (128, 32), (64, 32), (20, 4), (7, 1)])
def test_the_tensors(group_size: int, written: int, made: Callable, tmp_path: Path) -> None:
    """The layers have 64 and 96 inputs; groups become the largest that divide both."""
    model, layers = made(group_size)
    before = copy.deepcopy(model.state_dict())
    (tmp_path / "out").mkdir()
    save_pack_quantized(model, layers, tmp_path / "out")
    tensors = stored(tmp_path / "out")
    for name, layer in layers.items():
        assert f"{name}.weight" not in tensors and tensors[f"{name}.weight_packed"].dtype == torch.int32
        assert torch.equal(dequantized_slowly(tensors, name, written), layer.weight.dequantize())
    rest = {name: tensor for name, tensor in tensors.items() if not name.rpartition(".")[2].startswith("weight_")}
    assert all(torch.equal(before[name], tensor) for name, tensor in rest.items())
    quantized = {f"{name}.weight" for name in layers}
    assert rest.keys() | quantized | {"lm_head.weight"} == before.keys() | {"lm_head.weight"}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert getattr(model.config, "quantization_config", None) is None
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == written
    assert config["ignore"] == ["lm_head"]


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compressed_tensors_reads_it(dtype: torch.dtype, dequantize: bool, made: Callable, tmp_path: Path) -> None:
    from transformers import CompressedTensorsConfig

    model, layers = made(128, dtype)
    save_pack_quantized(model, layers, tmp_path / "out")
    config = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True, dtype=dtype, **config)
    logits = loaded(TOKENS).logits  # the first call decompresses
    weights = {name: linear.weight for name, linear in prunable_linears(loaded).items()}
    for name, layer in layers.items():
        expected, found = layer.weight.dequantize(), weights[name]
        assert found.dtype == dtype
        if dtype == torch.float32:
            assert torch.equal(found, expected)
        else:  # the scale and the product are rounded
            assert ((found.float() - expected).abs() <= (2 * 2**-8 + 2**-16) * expected.abs()).all()
        assert not found[layer.weight.codes == 0].any()
    apply_layers(model, layers)
    expected = model(TOKENS).logits
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_what_the_form_cannot_hold_is_refused(made: Callable, model_masks: Callable, tmp_path: Path) -> None:
    model, layers = made()
    name, layer = "model.layers.1.mlp.down_proj", layers["model.layers.1.mlp.down_proj"]
    rows, columns = layer.weight.codes.shape

    def refused(match: str, model: nn.Module = model, layers: dict[str, QuantizedLayer] = layers) -> None:
        with pytest.raises(InputError, match=match):
            save_pack_quantized(model, layers, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    adapter = Adapter(torch.zeros(rows, 2), torch.zeros(2, columns))
    adapted = layers | {name: QuantizedLayer(layer.weight, adapter)}
    refused(rf"{name} does not fit .*low-rank adapter \(SLiM-LoRA\); save the packed form", layers=adapted)
    refused("its codes have 8 bits; quantize with `bits: 4`", layers=made(bits=8)[1])
    refused("it is a Conv1D, not a Linear", *made(4, family="gpt2"))
    refused("the quantized layers are of another model", layers={name: layer})
    half, tiny = made(dtype=torch.float16)
    tiny[name].weight.scales.mul_(1e-9)
    refused(f"{name}: a scale is out of the range of torch.float16", half, tiny)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine.txt").touch()
    with pytest.raises(InputError, match="it is not an empty folder"):
        save_pack_quantized(model, layers, tmp_path / "used")
    packed, _ = made()
    convert(packed, model_masks(packed, 32))
    with pytest.raises(InputError, match="of another model|quantization_config already"):
        save_pack_quantized(packed, layers, tmp_path / "out")


def test_fewer_bits_are_written_as_four(made: Callable, tmp_path: Path) -> None:
    model, layers = made(32, bits=3)
    save_pack_quantized(model, layers, tmp_path / "out")
    tensors = stored(tmp_path / "out")
    for name, layer in layers.items():
        assert torch.equal(dequantized_slowly(tensors, name, 32), layer.weight.dequantize())
        assert math.prod(tensors[f"{name}.weight_packed"].shape) * 8 == layer.weight.codes.numel()
