"""Packed layers: equal to linear layers with the masked weight."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.inference.backends import BACKENDS, load
from patch.inference.linear import HybridLinear
from patch.inference.packed import unpack

SHAPE, TILE = (64, 96), 32
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}


def pair(made: object, bias: bool = True, backend: str | None = None) -> tuple[HybridLinear, nn.Linear]:
    """Return a packed layer, and a linear layer with the masked weight in float64."""
    rows, columns = made.weight.shape
    linear = nn.Linear(columns, rows, bias)
    torch.manual_seed(1)
    values = torch.randn(rows).to(made.weight.dtype) if bias else None
    linear.weight = nn.Parameter(made.masked)
    if bias:
        linear.bias = nn.Parameter(values)
    return HybridLinear(made.packed, values, backend), linear.double()


def inputs_of(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(layer: HybridLinear, linear: nn.Linear, inputs: Tensor) -> None:
    with torch.no_grad():
        found, expected = layer(inputs), linear(inputs.double())
    assert found.shape == expected.shape and found.dtype == inputs.dtype
    bound = TOLERANCE[inputs.dtype] * (float(expected.abs().max()) if expected.numel() else 1)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (2, 3), (2, 0), (3, 1, 2), (2, 70)])
def test_inputs_of_any_shape(shape: tuple, bias: bool, dtype: torch.dtype, hybrid_weight: Callable) -> None:
    layer, linear = pair(hybrid_weight(SHAPE, TILE, dtype=dtype), bias)
    assert_same(layer, linear, inputs_of(*shape, 96, dtype=dtype))


def test_inputs_that_are_not_contiguous(hybrid_weight: Callable) -> None:
    layer, linear = pair(hybrid_weight(SHAPE, TILE))
    base = inputs_of(4, 96, 96)
    for inputs in (
        base.transpose(0, 1),
        base.transpose(1, 2),
        base[:, ::3],
        base[:, 5],
        base[..., :1].expand(4, 96, 96),
    ):
        assert_same(layer, linear, inputs)
        kept = inputs.clone()
        layer(inputs)
        assert torch.equal(inputs, kept), "inputs are left as they are"


def test_inputs_that_do_not_fit(hybrid_weight: Callable) -> None:
    layer, _ = pair(hybrid_weight(SHAPE, TILE))
    for shape in ((2, 48), (2, 192), (96, 2), (95,)):
        with pytest.raises(RuntimeError):
            layer(inputs_of(*shape))
    with pytest.raises(RuntimeError):
        layer(inputs_of(2, 96).double())


def test_gradients_of_inputs(hybrid_weight: Callable) -> None:
    layer, linear = pair(hybrid_weight(SHAPE, TILE))
    inputs = inputs_of(3, 96).requires_grad_()
    layer(inputs).square().sum().backward()
    found, inputs.grad = inputs.grad, None
    linear.float()(inputs).square().sum().backward()
    torch.testing.assert_close(found, inputs.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", [None, "unpacked"])
def test_under_inference_mode_and_after_it(backend: str | None, hybrid_weight: Callable) -> None:
    made = hybrid_weight(SHAPE, TILE)
    layer, linear = pair(made, backend=backend)
    with torch.inference_mode():
        assert_same(layer, linear, inputs_of(3, 96))
        assert_same(layer, linear, inputs_of(130, 96))
    assert_same(layer, linear, inputs_of(3, 96))
    inputs = inputs_of(3, 96).requires_grad_()
    layer(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, made.masked.sum(0).expand(3, -1))


def pickled(layer: HybridLinear) -> HybridLinear:
    return pickle.loads(pickle.dumps(layer))


def saved(layer: HybridLinear) -> HybridLinear:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("used", [False, True])
def test_copies_stand_alone(copied: Callable, used: bool, hybrid_weight: Callable) -> None:
    layer, linear = pair(hybrid_weight(SHAPE, TILE))
    inputs = inputs_of(3, 96)
    if used:
        layer(inputs)
    other = copied(layer)
    assert_same(other, linear, inputs)
    layer.values.zero_()
    layer.bias.zero_()
    assert not layer(inputs).any()
    assert_same(other, linear, inputs)
    # A copy forgets as well.
    state = {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in other.state_dict().items()}
    other.load_state_dict(state)
    torch.testing.assert_close(other(inputs).double(), 2 * linear(inputs.double()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_other_weights_are_loaded(inside: bool, assign: bool, hybrid_weight: Callable) -> None:
    """The loaded weight has as many dense tiles at other positions."""
    made = [hybrid_weight(SHAPE, TILE, seed=seed) for seed in (0, 1)]
    made[1].dense = made[0].dense.flip(0, 1)
    made[1].mask = made[0].mask.view(2, 32, 3, 32).flip(0, 2).reshape(SHAPE)
    assert not torch.equal(made[0].dense, made[1].dense)
    (layer, _), (other, linear) = map(pair, made)
    inputs = inputs_of(3, 96)
    layer(inputs)
    whole = nn.Sequential(layer) if inside else layer
    state = (nn.Sequential(other) if inside else other).state_dict()
    whole.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=assign)
    assert_same(layer, linear, inputs)
    assert torch.equal(unpack(layer.packed), made[1].masked)


def test_its_state_is_what_it_is_made_of(hybrid_weight: Callable) -> None:
    layer, _ = pair(hybrid_weight(SHAPE, TILE))
    assert set(layer.state_dict()) == {"values", "bits", "dense", "bias"}
    assert set(pair(hybrid_weight(SHAPE, TILE), bias=False)[0].state_dict()) == {"values", "bits", "dense"}
    assert not list(layer.parameters())
    fewer = pair(hybrid_weight(SHAPE, TILE, 0.0))[0]
    with pytest.raises(RuntimeError, match="size mismatch for values"):
        layer.load_state_dict(fewer.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype(dtype: torch.dtype, hybrid_weight: Callable) -> None:
    made = hybrid_weight(SHAPE, TILE)
    layer, linear = pair(made)
    layer(inputs_of(3, 96))
    assert layer.to(dtype) is layer
    assert (layer.values.dtype, layer.bias.dtype, layer.bits.dtype, layer.dense.dtype) == (
        *(dtype, dtype),
        *(torch.uint8, torch.bool),
    )
    assert torch.equal(unpack(layer.packed), made.masked.to(dtype))
    for rows in (1, 3, 200):
        assert_same(layer, linear.to(dtype).double(), inputs_of(rows, 96, dtype=dtype))
    layer.float()
    assert_same(layer, linear.to(dtype).double(), inputs_of(3, 96))


def test_a_layer_shared_with_other_processes(hybrid_weight: Callable) -> None:
    """Sharing moves the weight's memory."""
    layer, linear = pair(hybrid_weight(SHAPE, TILE))
    layer(inputs_of(3, 96))
    before = layer.values.data_ptr()
    layer.share_memory()
    assert layer.values.data_ptr() != before
    assert_same(layer, linear, inputs_of(3, 96))


def test_on_another_device(hybrid_weight: Callable) -> None:
    layer, _ = pair(hybrid_weight(SHAPE, TILE))
    layer.to("meta")
    assert layer.packed.values.device.type == layer.packed.dense.device.type == "meta"
    assert layer.packed is layer.packed


def test_it_describes_itself(hybrid_weight: Callable) -> None:
    made = hybrid_weight(SHAPE, TILE)
    layer, _ = pair(made)
    sparse = int((~made.dense).sum())
    assert 0 < sparse < 6
    # A dense tile of 32 takes 4096 bytes, a sparse one 2048 and 128 of bits; each one of the map.
    ratio = (6 * 4096 - sparse * 1920 + 6) / (6 * 4096 + 6)
    assert repr(layer) == (
        f"HybridLinear(in_features=96, out_features=64, bias=True, tile=32, sparse_tiles={sparse}/6, "
        f"size_ratio={ratio:.3f})"
    )
    assert "bias=False" in repr(pair(made, bias=False)[0])


def test_named_backends(hybrid_weight: Callable) -> None:
    layer, linear = pair(hybrid_weight(SHAPE, TILE), backend="unpacked")
    assert_same(layer, linear, inputs_of(3, 96))
    made = hybrid_weight(SHAPE, TILE, dtype=torch.float16)
    with pytest.raises(InputError, match="backend compiled: a weight in torch.float16; expected float32 or bfloat16"):
        pair(made, backend="compiled")[0](inputs_of(3, 96, dtype=torch.float16))
    with pytest.raises(InputError, match="backend semi-structured: "):
        pair(made, backend="semi-structured")[0](inputs_of(3, 96, dtype=torch.float16))
    with pytest.raises(InputError, match="backend 'cutlass' is not one of semi-structured, fused, compiled, unpacked"):
        pair(made, backend="cutlass")[0](inputs_of(3, 96))


def test_a_backend_whose_needs_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "odd", "patch.inference.backends.odd")
    with pytest.raises(InputError, match="backend odd: No module named 'patch.inference.backends.odd'"):
        load("odd")
    assert [load(name).__name__ for name in ("compiled", "unpacked")] == [BACKENDS["compiled"], BACKENDS["unpacked"]]
