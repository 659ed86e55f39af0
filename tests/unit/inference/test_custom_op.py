"""The operator `patch_hybrid::linear`: equal to the layer, safe with any tensors, and traced as one operator."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference import custom_op
from patch.inference.linear import HybridLinear

SHAPE, TILE = (64, 96), 32


def inputs_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def arguments(layer: HybridLinear, inputs: Tensor) -> tuple[Any, ...]:
    return inputs, layer.values, layer.bits, layer.dense, layer.out_features, layer.tile


def test_pytorch_accepts_it(hybrid_weight: Callable) -> None:
    layer = HybridLinear(hybrid_weight(SHAPE, TILE).packed)
    found = torch.library.opcheck(torch.ops.patch_hybrid.linear.default, arguments(layer, inputs_of(2, 3, 96)))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(96,), (1, 96), (0, 96), (2, 3, 96), (200, 96)])
@pytest.mark.parametrize("backend", [None, "unpacked"])
def test_it_multiplies_as_the_layer_does(
    backend: str | None, shape: tuple[int, ...], dtype: torch.dtype, hybrid_weight: Callable
) -> None:
    made = hybrid_weight(SHAPE, TILE, dtype=dtype)
    inputs = inputs_of(*shape, dtype=dtype)
    found = torch.ops.patch_hybrid.linear(*arguments(HybridLinear(made.packed), inputs), backend)
    assert found.shape == (*shape[:-1], 64) and found.dtype == dtype
    expected = inputs.double() @ made.masked.double().T
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * 30)


def test_changed_parts_are_checked_again(hybrid_weight: Callable) -> None:
    made, inputs = hybrid_weight(SHAPE, TILE, whole=True), inputs_of(3, 96).round()
    layer = HybridLinear(made.packed)

    def product() -> Tensor:
        return torch.ops.patch_hybrid.linear(*arguments(layer, inputs))

    assert torch.equal(product(), inputs @ made.masked.T)
    layer.values.mul_(2)
    assert torch.equal(product(), 2 * inputs @ made.masked.T)
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "bits": lambda bits: bits.zero_(),
        "dense": lambda dense: dense.fill_(True),
        "values": lambda values: values[1:],
    }
    for part, change in changes.items():
        layer = HybridLinear(made.packed)
        product()
        setattr(layer, part, change(getattr(layer, part)))
        with pytest.raises(InputError, match="bits are damaged|values have the shape"):
            product()


def test_parts_of_another_size(hybrid_weight: Callable) -> None:
    layer = HybridLinear(hybrid_weight(SHAPE, TILE).packed)
    inputs, *parts = arguments(layer, inputs_of(3, 96))
    torch.ops.patch_hybrid.linear(inputs, *parts)
    for wrong in (
        (inputs_of(3, 48), *parts),
        (inputs, *parts[:3], 128, TILE),
        (inputs, *parts[:4], 16),
        (inputs, parts[0], parts[1][:-1].clone(), *parts[2:]),
        (inputs, parts[0].to(torch.int32), *parts[1:]),
        (inputs.double(), *parts),
    ):
        with pytest.raises((InputError, RuntimeError)):
            torch.ops.patch_hybrid.linear(*wrong)


def test_what_it_refuses(hybrid_weight: Callable) -> None:
    layer = HybridLinear(hybrid_weight(SHAPE, TILE).packed)
    with pytest.raises(InputError, match="no backward pass; call it under torch.no_grad"):
        torch.ops.patch_hybrid.linear(*arguments(layer, inputs_of(3, 96).requires_grad_()))
    with torch.inference_mode():
        layer.bits = layer.bits.clone()
        with pytest.raises(InputError, match="made under torch.inference_mode"):
            torch.ops.patch_hybrid.linear(*arguments(layer, inputs_of(3, 96)))


def test_checked_weights_live_as_long_as_their_values(hybrid_weight: Callable) -> None:
    gc.collect()
    before = len(custom_op._WEIGHTS)
    layer = HybridLinear(hybrid_weight(SHAPE, TILE).packed)
    with torch.inference_mode():
        torch.ops.patch_hybrid.linear(*arguments(layer, inputs_of(3, 96)))
    known = custom_op._WEIGHTS[layer.values]
    torch.ops.patch_hybrid.linear(*arguments(layer, inputs_of(1, 96)))
    assert custom_op._WEIGHTS[layer.values] is known and len(custom_op._WEIGHTS) == before + 1
    del layer, known
    gc.collect()
    assert len(custom_op._WEIGHTS) == before


@pytest.mark.parametrize("bias", [True, False])
def test_a_compiled_layer_has_one_operator(bias: bool, hybrid_weight: Callable) -> None:
    made = hybrid_weight(SHAPE, TILE)
    layer = HybridLinear(made.packed, torch.randn(64) if bias else None)
    called = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Callable:
        called.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=keep, fullgraph=True)
    inputs = inputs_of(2, 5, 96)
    with torch.no_grad():
        assert torch.equal(compiled(inputs), layer(inputs))
        assert called.count(torch.ops.patch_hybrid.linear.default) == 1 and len(called) == 1 + bias
        # Moved and changed buffers are seen by the graph.
        layer.double()
        torch.testing.assert_close(compiled(inputs.double()), layer(inputs.double()))
        layer.float()
        layer.bits.zero_()
        with pytest.raises(InputError, match="bits are damaged"):
            compiled(inputs)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_gradients_through_a_compiled_layer(hybrid_weight: Callable) -> None:
    """Inputs that need a gradient are multiplied outside of the operator, which has none."""
    made = hybrid_weight(SHAPE, TILE)
    compiled = torch.compile(HybridLinear(made.packed), backend="eager")
    inputs = inputs_of(3, 96).requires_grad_()
    compiled(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, made.masked.sum(0).expand(3, -1))
    torch._dynamo.reset()
