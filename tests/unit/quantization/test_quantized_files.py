"""Tests of the files of quantised layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from patch.errors import InputError
from patch.files.tensors import load_header, load_tensors, save_tensors
from patch.models.loading import prunable_linears
from patch.pruning.weights import save_weights
from patch.quantization.absmax import quantize
from patch.quantization.model import QuantizedLayer, apply_layers
from patch.quantization.quantization_settings import Quantization
from patch.quantization.quantized_files import FORMAT, load_layers, save_layers
from patch.quantization.slim_lora import Adapter

# Cost of the stage in an evaluation's record.
COST = {"seconds": 1.5, "peak_memory_mb": 20.0}
Compress = Callable[..., dict[str, QuantizedLayer]]


def example(rows: int = 3, columns: int = 7, bits: int = 4, group_size: int = 4, rank: int = 2) -> QuantizedLayer:
    generator = torch.Generator().manual_seed(0)
    weight = quantize(torch.randn(rows, columns, generator=generator), bits, group_size)
    left, right = (torch.randn(size, generator=generator) for size in ((rows, rank), (rank, columns)))
    return QuantizedLayer(weight, Adapter(left, right))


def assert_equal(found: dict[str, QuantizedLayer], expected: dict[str, QuantizedLayer]) -> None:
    assert list(found) == list(expected)
    for name, layer in expected.items():
        other = found[name]
        assert (other.weight.bits, other.weight.group_size) == (layer.weight.bits, layer.weight.group_size)
        pairs = [(other.weight.codes, layer.weight.codes), (other.weight.scales, layer.weight.scales)]
        assert (other.adapter is None) == (layer.adapter is None)
        if layer.adapter:
            pairs += [(other.adapter.left, layer.adapter.left), (other.adapter.right, layer.adapter.right)]
        for left, right in pairs:
            assert left.dtype == right.dtype
            assert torch.equal(left, right)


@given(
    st.integers(1, 3),
    st.sampled_from([1, 4, 7, 130]),
    st.integers(2, 8),
    st.sampled_from([1, 4, 128]),
    st.sampled_from([None, torch.float32, torch.bfloat16, torch.float16]),
)
def test_round_trip(
    tmp_path: Path, rows: int, columns: int, bits: int, group_size: int, dtype: torch.dtype | None
) -> None:
    layer = example(rows, columns, bits, group_size)
    layer = QuantizedLayer(layer.weight, layer.adapter.to(dtype) if dtype else None)
    # All the codes that the bits allow, the smallest too, which AbsMax itself never gives.
    values = torch.arange(rows * columns).remainder(2**bits) - 2 ** (bits - 1)
    layer.weight.codes.copy_(values.reshape(rows, columns))
    save_layers(tmp_path / "q", {"b": layer, "a": example()}, "abc", COST)
    layers, cost = load_layers(tmp_path / "q")
    assert cost == COST
    assert_equal(layers, {"b": layer, "a": example()})
    assert load_header(tmp_path / "q", FORMAT, "file")["digest"] == "abc"


def test_four_bits_take_half_a_byte(tmp_path: Path) -> None:
    weight = quantize(torch.randn(64, 1024))
    save_layers(tmp_path / "q", {"a": QuantizedLayer(weight)}, "abc", COST)
    payload = 64 * 1024 // 2 + 4 * 64 * 8
    assert payload < (tmp_path / "q").stat().st_size < payload + 1000
    weight.codes[0, :4] = torch.tensor([0, 1, -8, 7])
    save_layers(tmp_path / "q", {"a": QuantizedLayer(weight)}, "abc", COST)
    with safe_open(tmp_path / "q", "pt") as file:
        assert file.get_tensor("a.codes")[:2].tolist() == [0x98, 0xF0]


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_model_that_loads_the_layers_gives_the_same_outputs(
    tmp_path: Path, family: str, tiny_model: Callable[..., nn.Module], compensated: Compress, sequences: Callable
) -> None:
    model = tiny_model(family).to(torch.bfloat16)
    layers = compensated(model, Quantization(bits=4, group_size=10, rank_ratio=0.25, quantize_adapters=True))
    save_layers(tmp_path / "q", layers, "abc", COST)
    other = tiny_model(family).to(torch.bfloat16)
    apply_layers(other, load_layers(tmp_path / "q")[0])
    tokens = torch.as_tensor(sequences().astype(np.int64))
    with torch.inference_mode():
        assert torch.equal(other(tokens).logits, model(tokens).logits)


def test_missing_truncated_and_foreign_files(tmp_path: Path, tiny_model: Callable[..., nn.Module]) -> None:
    path = tmp_path / "q"
    with pytest.raises(InputError, match="q: no such file"):
        load_layers(path)
    save_layers(path, {"a": example()}, "abc", COST)
    content = path.read_bytes()
    for length in (0, 20, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="q: truncated or not a safetensors file"):
            load_layers(path)
    save_weights(path, prunable_linears(tiny_model()), "abc")
    with pytest.raises(InputError, match="format is 'patch-weights-1', expected 'patch-quantized-2'"):
        load_layers(path)


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> None:
    """Change tensors and descriptions of layers and update the checksum."""
    header, tensors = load_tensors(path, FORMAT, "file")
    change(tensors, header["layers"])
    save_tensors(path, FORMAT, header, tensors)


DAMAGES: dict[str, tuple[Callable, str]] = {
    "codes missing": (lambda t, h: t.pop("a.codes"), "a.codes is missing"),
    "codes too few": (lambda t, h: t.update({"a.codes": t["a.codes"][1:].clone()}), "a.codes is missing or is not"),
    "codes signed": (lambda t, h: t.update({"a.codes": t["a.codes"].to(torch.int8)}), "a.codes is missing or is not"),
    "codes too wide": (lambda t, h: h["a"].update(bits=3), "codes outside 3 bits"),
    "scales of half": (lambda t, h: t.update({"a.scales": t["a.scales"].half()}), "a.scales is missing or is not"),
    "scale zero": (lambda t, h: t["a.scales"][0].zero_(), "scales that are not positive and finite"),
    "scale nan": (lambda t, h: t["a.scales"][0].fill_(float("nan")), "scales that are not positive and finite"),
    "another group": (lambda t, h: h["a"].update(group_size=3), "a.scales is missing or is not"),
    "bits": (lambda t, h: h["a"].update(bits=9), "bits is 9; use 2 to 8"),
    "another rank": (lambda t, h: h["a"].update(rank=1), "a.left is missing or is not"),
    "factors differ": (lambda t, h: t.update({"a.right": t["a.right"].half()}), "a.right is missing or is not"),
    "adapter unknown": (lambda t, h: h["a"].update(rank=None), "'a.left' belongs to no layer"),
    "layer unknown": (lambda t, h: h.pop("a"), "belongs to no layer of its header"),
    "scale infinite": (lambda t, h: t["a.scales"][0].fill_(float("inf")), "scales that are not positive and finite"),
    "adapter nan": (lambda t, h: t["a.left"][0].fill_(float("nan")), "an adapter that is not finite"),
    "bits after the end": (lambda t, h: t["a.codes"][-1].bitwise_or_(0x10), "bits after its last code"),
    "no shape": (lambda t, h: h["a"].pop("shape"), "`layers.a.shape`: Field required"),
    "no fields": (lambda t, h: h.update(a=3), "`layers.a`"),
    "shape negative": (lambda t, h: h["a"].update(shape=[-3, -7]), "`layers.a.shape.0`"),
    "shape of text": (lambda t, h: h["a"].update(shape=["3", "7"]), "`layers.a.shape.0`"),
    "shape huge": (lambda t, h: h["a"].update(shape=[2**30, 2**30]), "a.codes is missing or is not"),
    "group of true": (lambda t, h: h["a"].update(group_size=True), "`layers.a.group_size`"),
    "group of zero": (lambda t, h: h["a"].update(group_size=0), "group_size is 0"),
    "rank negative": (lambda t, h: h["a"].update(rank=-1), "`layers.a.rank`"),
    "more": (lambda t, h: h["a"].update(more=1), "`layers.a.more`"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_contents_that_do_not_fit_the_header(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "q"
    save_layers(path, {"a": example()}, "abc", COST)
    change, message = DAMAGES[damage]
    rewrite(path, change)
    with pytest.raises(InputError, match=f"quantised weights {path}: .*{message}"):
        load_layers(path)


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "q"
    save_layers(path, {"a": example()}, "abc", COST)
    for old, new in ((b'\\"seconds\\": 1.5', b'\\"seconds\\": 9.5'), (path.read_bytes()[-3:], b"123")):
        save_layers(path, {"a": example()}, "abc", COST)
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))
        with pytest.raises(InputError, match="do not match its checksum"):
            load_layers(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_layers(tmp_path / "q", {"a": example()}, "abc", COST)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_layers(tmp_path / "q", {"b": example()}, "def", COST)
    assert load_header(tmp_path / "q", FORMAT, "file")["digest"] == "abc"
    assert [file.name for file in tmp_path.iterdir()] == ["q"]
