"""Tests of the fused products against float64, for all sizes and numbers of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patch import native
from patch.masks.kernels import Layer, Sampling, compiled, eager, kernel_for, products
from patch.masks.kernels.eager import pack_bits
from patch.masks.linear import MaskedLinear, Sink

compiles = kernel_for(torch.device("cpu"), torch.float32) is compiled
pytestmark = pytest.mark.skipif(not compiles, reason="no C++ compiler")


def make(grid: tuple[int, int], tile: tuple[int, int], seed: int = 0) -> tuple[Layer, Tensor]:
    """Return a layer and its frozen mask."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = grid[0] * tile[0], grid[1] * tile[1]
    mask = torch.rand(rows, columns, generator=generator) > 0.5
    weight, tile_density = torch.randn(rows, columns, generator=generator), torch.rand(grid, generator=generator)
    layer = Layer(weight, None, pack_bits(mask), tile_density, tile, Sampling(1.0, 1.0), (0, 0))
    return layer, mask


def spread(tile_density: Tensor, tile: tuple[int, int]) -> Tensor:
    return tile_density.repeat_interleave(tile[0], 0).repeat_interleave(tile[1], 1)


def run(layer: Layer, tokens: int, wanted: bool = True, seed: int = 1) -> dict[str, Tensor]:
    """Return the results of the products for random inputs and gradients; outputs start as 7."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = layer.weight.shape
    inputs = torch.randn(tokens, columns, generator=generator)
    gradient = torch.randn(tokens, rows, generator=generator)
    outputs, grad_density = torch.full((tokens, rows), 7.0), torch.full_like(layer.tile_density, 7.0)
    grad_inputs = torch.full((tokens, columns), 7.0) if wanted else None
    norm = products.forward(layer, inputs, outputs)
    products.backward(layer, gradient, inputs, 0.3, grad_inputs, grad_density)
    found = {
        "outputs": outputs,
        "norm": torch.tensor(norm),
        "grad_density": grad_density - 7,
        "grad_inputs": grad_inputs,
    }
    return {name: value for name, value in found.items() if value is not None}


def obvious(layer: Layer, mask: Tensor, tokens: int, seed: int = 1) -> dict[str, Tensor]:
    """Return the same results by float64 autograd."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = layer.weight.shape
    inputs = torch.randn(tokens, columns, generator=generator).double().requires_grad_()
    gradient = torch.randn(tokens, rows, generator=generator).double()
    tile_density = layer.tile_density.double().requires_grad_()
    weight = layer.weight.double() * torch.where(mask, 1.0, spread(tile_density, layer.tile))
    outputs, norm = inputs @ weight.T, weight.square().sum()
    ((outputs * gradient).sum() + 0.3 * norm).backward()
    return {
        "outputs": outputs.detach(),
        "norm": norm.detach(),
        "grad_density": tile_density.grad,
        "grad_inputs": inputs.grad,
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in found.items():
        bound = 1e-5 * max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=bound, msg=name)


@settings(max_examples=150, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    height=st.integers(1, 60),
    vectors=st.integers(1, 9),
    tokens=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_products_are_those_of_float64(
    grid: tuple[int, int], height: int, vectors: int, tokens: int, seed: int
) -> None:
    layer, mask = make(grid, (height, 16 * vectors), seed)
    assert_close(run(layer, tokens), obvious(layer, mask, tokens))


@pytest.mark.parametrize("tokens", [1, 128, 256])
def test_products_that_are_formed_in_several_parts(tokens: int) -> None:
    """The layer has more columns and rows than are masked at a time."""
    layer, mask = make((3, 7), (128, 128))
    assert_close(run(layer, tokens), obvious(layer, mask, tokens))


@pytest.mark.parametrize("whole", [True, False])
def test_a_mask_of_ones_and_of_zeros(whole: bool) -> None:
    layer, mask = make((2, 3), (24, 32))
    mask = torch.full_like(mask, whole)
    layer = replace(layer, bits=pack_bits(mask))
    found = run(layer, 20)
    assert_close(found, obvious(layer, mask, 20))
    assert (found["grad_density"] == 0).all() == whole


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Return a function that sets the number of threads for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("grid", "tile", "tokens"), [((5, 3), (8, 48), 33), ((4, 2), (128, 128), 100), ((1, 1), (5, 16), 1)]
)
def test_any_number_of_threads_is_the_same_bit_for_bit(
    grid: tuple, tile: tuple, tokens: int, threads: Callable
) -> None:
    threads(1)
    expected = run(make(grid, tile)[0], tokens)
    for count in (2, 3, 7):
        threads(count)
        found = run(make(grid, tile)[0], tokens)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_inputs_without_a_gradient_change_nothing_else() -> None:
    layer, _ = make((3, 3), (20, 32))
    found, expected = run(layer, 9, wanted=False), run(layer, 9)
    assert set(found) == {"outputs", "norm", "grad_density"}
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_what_is_no_number_is_not_hidden() -> None:
    layer, _ = make((2, 2), (20, 32))
    layer.tile_density[1, 0] = float("nan")
    found = run(layer, 3)
    assert found["norm"].isnan() and found["grad_density"].isnan().sum() == 1 and found["outputs"][:, 20:].isnan().all()


def test_the_caller_keeps_its_denormals() -> None:
    run(make((2, 2), (20, 32))[0], 3)
    assert (torch.full((64,), 1e-30) * 1e-10 > 0).all()


def test_what_they_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = make((2, 2), (20, 32))
    monkeypatch.setattr(native, "processor", lambda: frozenset(["avx2"]))
    assert not products.serves(layer, 1)
    monkeypatch.setattr(native, "processor", lambda: frozenset(["avx2", "avx512f"]))
    assert products.serves(layer, 1) and products.serves(layer, products.FEW)
    assert not products.serves(layer, products.FEW + 1)
    assert not products.serves(replace(layer, weight=layer.weight.bfloat16()), 1)
    assert not products.serves(replace(layer, weight=layer.weight.double()), 1)
    assert not products.serves(replace(layer, tile_density=None, tile=(1, 4)), 1)
    assert not products.serves(replace(layer, bits=None, logits=torch.zeros(6, 640)), 1)
    assert not products.serves(make((2, 2), (20, 24))[0], 1), "tiles are no whole vectors"
    monkeypatch.setattr(products, "kernel_for", lambda device, dtype: eager)
    assert not products.serves(layer, 1)


def test_one_layer_has_few_tokens_and_then_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "processor", lambda: frozenset(["avx512f"]))
    monkeypatch.setattr(products, "FEW", 4)
    layer, mask = make((3, 2), (16, 32))
    weight = layer.weight * torch.where(mask, 1.0, spread(layer.tile_density, layer.tile))
    for tokens in (3, 9, 2):
        inputs = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(tokens), requires_grad=True)
        assert products.serves(layer, tokens) == (tokens < 5)
        outputs, _ = MaskedLinear.apply(inputs, None, layer.tile_density, layer, None, Sink())
        outputs.sum().backward()
        torch.testing.assert_close(outputs, inputs @ weight.T, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(inputs.grad, weight.sum(0).expand(tokens, -1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("contiguous", [True, False])
def test_a_layer_is_the_same_either_way(contiguous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths agree on three-dimensional inputs with a bias."""

    def found() -> list[Tensor]:
        layer, _ = make((3, 2), (16, 32))
        generator = torch.Generator().manual_seed(2)
        inputs, bias = torch.randn(2, 5, 64, generator=generator), torch.randn(48, generator=generator)
        gradient = torch.randn(2, 5, 48, generator=generator)
        if not contiguous:
            inputs, gradient = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (inputs, gradient))
        inputs.requires_grad_()
        tile_density = layer.tile_density.clone().requires_grad_()
        outputs, norm = MaskedLinear.apply(inputs, None, tile_density, layer, bias, Sink())
        torch.autograd.backward([outputs, norm], [gradient, torch.tensor(0.3)])
        return [outputs.detach(), norm.detach(), inputs.grad, tile_density.grad]

    monkeypatch.setattr(products, "serves", lambda layer, tokens: True)
    fused = found()
    assert fused[1].dtype == torch.float32 and fused[1].shape == ()
    monkeypatch.setattr(products, "serves", lambda layer, tokens: False)
    for one, other in zip(fused, found(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
