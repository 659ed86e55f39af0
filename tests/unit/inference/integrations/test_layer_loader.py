"""Packed parts of a layer in each process of tensor parallelism, against slices of the masked weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference.integrations.layer_loader import LayerLoader
from patch.inference.packed import PackedWeight, pack, unpack
from patch.inference.packed_config import PackedLayer
from patch.quantization.absmax import quantize

TILE = 8


def described(packed: PackedWeight) -> PackedLayer:
    sparse, quantized = int((~packed.dense).sum()), packed.group_size and {"bits": 4, "group_size": packed.group_size}
    return PackedLayer(shape=list(packed.shape), tile=packed.tile, sparse_tiles=sparse, **quantized or {})


def parts_of(weight: PackedWeight | Tensor) -> dict[str, Tensor]:
    return {"weight": weight} if isinstance(weight, Tensor) else weight.parts


def load(loader: LayerLoader, layers: Sequence[PackedWeight | Tensor], order: int = 0) -> list[PackedWeight]:
    """Add all tensors, in an order of the given number; only the last one completes the layer."""
    tensors = [(i, *part) for i, weight in enumerate(layers) for part in parts_of(weight).items()]
    *others, last = tensors[order:] + tensors[:order] if order >= 0 else tensors[::-1]
    assert all(loader.add(*each) is None for each in others)
    found = loader.add(*last)
    assert found is not None and all(piece.adapter is None for piece in found)
    return [piece.weight for piece in found]


def loaders(
    layers: Mapping[str, PackedWeight | Tensor],
    sizes: Sequence[int],
    inputs: tuple[int, int],
    world: int,
    dtype: torch.dtype = torch.float64,
) -> Iterator[LayerLoader]:
    """Yield the loader of each process."""
    members = {name: None if isinstance(each, Tensor) else described(each) for name, each in layers.items()}
    for rank in range(world):
        yield LayerLoader(members, sizes, inputs, rank, world, dtype)


def product(weights: list[PackedWeight], inputs: Tensor) -> Tensor:
    return torch.cat([inputs @ unpack(weight).T for weight in weights], -1)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("order", [0, 2, 5, -1])
def test_merged_outputs_are_divided_and_few_heads_repeated(hybrid_weight: Callable, world: int, order: int):
    """Four query heads and two key-value heads of one tile each, as in attention."""
    heads = {"q": 4, "k": 2, "v": 2}
    layers = {
        name: hybrid_weight((n * TILE, 24), TILE, 0.4, torch.float64, i) for i, (name, n) in enumerate(heads.items())
    }
    sizes = [max(1, n // world) * TILE for n in heads.values()]
    packed = {name: each.packed for name, each in layers.items()}
    for rank, loader in enumerate(loaders(packed, sizes, (24, 24), world)):
        (found,) = load(loader, list(packed.values()), order)
        expected = []
        for (name, n), size in zip(heads.items(), sizes, strict=True):
            first = rank * size if n >= world else rank // (world // n) * size
            expected.append(layers[name].masked[first : first + size])
        assert unpack(found).equal(torch.cat(expected))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_products_of_divided_inputs_add_up(hybrid_weight: Callable, world: int):
    hybrid = hybrid_weight((16, 6 * TILE), TILE, 0.4, torch.float64)
    inputs, total = torch.randn(3, 6 * TILE, dtype=torch.float64), 0
    size = 6 * TILE // world
    for rank, loader in enumerate(loaders({"o": hybrid.packed}, [16], (size, 6 * TILE), world)):
        (found,) = load(loader, [hybrid.packed])
        mine = slice(rank * size, (rank + 1) * size)
        assert unpack(found).equal(hybrid.masked[:, mine])
        total = total + inputs[:, mine] @ unpack(found).T
    torch.testing.assert_close(total, inputs @ hybrid.masked.T)


@pytest.mark.parametrize("world", [1, 2])
def test_a_replicated_layer_is_whole_in_every_process(hybrid_weight: Callable, world: int):
    hybrid = hybrid_weight((16, 16), TILE, 0.4, torch.float64)
    for loader in loaders({"router": hybrid.packed}, [16], (16, 16), world):
        assert unpack(load(loader, [hybrid.packed])[0]).equal(hybrid.masked)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("rows", [16, 12])
def test_a_dense_layer_is_merged_with_packed_ones(hybrid_weight: Callable, world: int, rows: int):
    """With twelve outputs, tiles of eight do not divide the dense layer, which then has its own tile."""
    gate, up = hybrid_weight((16, 24), TILE, 0.4, torch.float64), torch.randn(rows, 24, dtype=torch.float64)
    sizes = [16 // world, rows // world]
    for rank, loader in enumerate(loaders({"gate": gate.packed, "up": up}, sizes, (24, 24), world)):
        found = load(loader, [gate.packed, up])
        assert len(found) == (1 if rows // world % TILE == 0 else 2)
        expected = [gate.masked[rank * sizes[0] :][: sizes[0]], up[rank * sizes[1] :][: sizes[1]]]
        assert torch.cat([unpack(each) for each in found]).equal(torch.cat(expected))


@pytest.mark.parametrize("world", [1, 2])
def test_layers_with_other_tiles_are_merged_as_parts(hybrid_weight: Callable, world: int):
    layers = [hybrid_weight((16, 24), tile, 0.4, torch.float64) for tile in (8, 4)]
    packed = {str(i): each.packed for i, each in enumerate(layers)}
    for rank, loader in enumerate(loaders(packed, [16 // world] * 2, (24, 24), world)):
        found = load(loader, list(packed.values()))
        assert [each.tile for each in found] == [8, 4]
        mine = slice(rank * 16 // world, (rank + 1) * 16 // world)
        inputs = torch.randn(2, 24, dtype=torch.float64)
        torch.testing.assert_close(product(found, inputs), inputs @ torch.cat([x.masked[mine] for x in layers]).T)


@pytest.mark.parametrize("world", [1, 2])
def test_a_layer_that_the_files_hold_merged_is_divided_member_by_member(hybrid_weight: Callable, world: int):
    whole = hybrid_weight((64, 16), TILE, 0.4, torch.float64)
    totals = [32, 16, 16]
    sizes = [total // world for total in totals]
    for rank, loader in enumerate(loaders({"qkv": whole.packed}, sizes, (16, 16), world)):
        (found,) = load(loader, [whole.packed])
        starts = [sum(totals[:i]) + rank * size for i, size in enumerate(sizes)]
        expected = [whole.masked[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        assert unpack(found).equal(torch.cat(expected))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("rank", [None, 3])
def test_quantized_layers_keep_their_scales_and_adapters(hybrid_weight: Callable, world: int, rank: int | None):
    """Merged outputs, and one layer whose inputs are divided at the borders of groups of eight."""
    for sizes, inputs in (([16, 8], 32), ([16], 32 // world)):
        layers, adapters, expected = {}, [], []
        for i, size in enumerate(sizes):
            hybrid = hybrid_weight((size * (world if len(sizes) > 1 else 1), 32), TILE, 0.4, seed=i)
            quantized = quantize(hybrid.weight * hybrid.mask, 4, 8)
            layers[str(i)] = pack(quantized, hybrid.mask, hybrid.dense, TILE)
            left, right = torch.randn(len(hybrid.weight), rank or 1), torch.randn(rank or 1, 32)
            adapters.append((left, right))
            expected.append(quantized.dequantize() * hybrid.mask + (left @ right if rank else 0))
        members = {name: described(each).model_copy(update={"rank": rank}) for name, each in layers.items()}
        for process in range(world):
            loader = LayerLoader(members, sizes, (inputs, 32), process, world, torch.float32)
            for i, weight in enumerate(layers.values()):
                factors = dict(zip(("adapter_left", "adapter_right"), adapters[i], strict=True)) if rank else {}
                for part, tensor in (weight.parts | factors).items():
                    pieces = loader.add(i, part, tensor)
            columns = slice(process * inputs, (process + 1) * inputs) if inputs < 32 else slice(None)
            rows = [slice(process * size, (process + 1) * size) if len(sizes) > 1 else slice(None) for size in sizes]
            assert len(pieces) == (len(sizes) if rank else 1)
            found = [
                unpack(piece.weight) + (piece.adapter.left @ piece.adapter.right if piece.adapter else 0)
                for piece in pieces
            ]
            wanted = torch.cat([one[own, columns] for one, own in zip(expected, rows, strict=True)])
            torch.testing.assert_close(torch.cat(found), wanted)


def test_inputs_divided_within_a_group_are_refused():
    layer = PackedLayer(shape=[16, 48], tile=8, sparse_tiles=1, bits=4, group_size=16)
    with pytest.raises(InputError, match="x: .* inputs 0 to 24 would cut groups of 16 inputs, which share a scale"):
        LayerLoader({"x": layer}, [16], (24, 48), 0, 2, torch.float32)


def test_weights_are_converted_to_the_dtype_of_the_model_and_copied(hybrid_weight: Callable):
    hybrid = hybrid_weight((16, 16), TILE)
    packed = hybrid.packed
    for dtype in (torch.float32, torch.bfloat16):
        (loader,) = loaders({"o": packed}, [16], (16, 16), 1, dtype)
        (found,) = load(loader, [packed])
        before = unpack(found)
        assert before.equal(hybrid.masked.to(dtype))
        stored = packed.values.clone()
        packed.values.zero_()
        assert unpack(found).equal(before)
        packed.values.copy_(stored)


def test_a_layer_can_be_loaded_again(hybrid_weight: Callable):
    first, second = (hybrid_weight((16, 16), TILE, 0.5, torch.float64, seed) for seed in (0, 1))
    second.dense = first.dense.clone()
    second.mask = first.mask.clone()
    (loader,) = loaders({"o": first.packed}, [16], (16, 16), 1)
    for each in (first, second):
        assert unpack(load(loader, [each.packed])[0]).equal(each.masked)


MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"sizes": [8], "world": 2}, "x: with a tensor parallel size of 2, outputs 0 to 8 would cut tiles of 16 outputs"),
    ({"inputs": (24, 48), "world": 2}, "x: with a tensor parallel size of 2, inputs 0 to 24 would cut tiles of 16"),
    ({"inputs": (24, 48), "world": 2}, "choose a size that divides its 1 x 3 tiles"),
    ({"inputs": (32, 32)}, "x: config.json describes 48 inputs; the model has 32"),
    ({"sizes": [10]}, r"x: 16 outputs cannot be divided into 10 for each of 1 processes"),
    ({"sizes": [32]}, r"x: 16 outputs cannot be divided into 32 for each of 1 processes"),
    ({"sizes": [8, 4]}, r"x: 16 outputs cannot be divided into 8 \+ 4 for each of 1 processes"),
]


@pytest.mark.parametrize(("changes", "message"), MESSAGES)
def test_sizes_that_do_not_fit_are_refused_before_any_tensor(changes: dict[str, Any], message: str):
    layer = PackedLayer(shape=[16, 48], tile=16, sparse_tiles=1)
    options = {"sizes": [16], "inputs": (48, 48), "rank": 0, "world": 1, "dtype": torch.float32} | changes
    with pytest.raises(InputError, match=message):
        LayerLoader({"x": layer}, **options)


def test_another_number_of_merged_layers_is_refused():
    layer = PackedLayer(shape=[16, 48], tile=16, sparse_tiles=1)
    with pytest.raises(InputError, match="a, b: 2 layers cannot be merged into 4"):
        LayerLoader({"a": layer, "b": layer}, [16] * 4, (48, 48), 0, 1, torch.float32)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("values", lambda t: t[:-1], r"x.values has the shape \[223\]; config.json needs \[224\]"),
        ("values", lambda t: t.int(), "x.values has the dtype int32; expected floating-point numbers"),
        ("bits", lambda t: t.view(torch.int8), "x.bits has the dtype int8; expected uint8"),
        ("bits", lambda t: t * 0 + 7, "x: bits are damaged"),
        ("dense", lambda t: ~t, "x: values have the shape"),
        ("dense", lambda t: t.T.contiguous(), r"x.dense has the shape \[3, 2\]; config.json needs \[2, 3\]"),
        ("weight", lambda t: t, "x.weight: not a tensor of this layer; expected values, bits, dense"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(hybrid_weight: Callable, part: str, change: Callable, message: str):
    packed = hybrid_weight((16, 24), TILE, 0.3, torch.float64).packed
    (loader,) = loaders({"x": packed}, [16], (24, 24), 1)
    tensors = parts_of(packed) | {"weight": packed.values}
    tensors[part] = change(tensors[part])
    with pytest.raises(InputError, match=message):
        for name in [part, *({"values", "bits", "dense"} - {part})]:
            loader.add(0, name, tensors[name])


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(8, 16), r"b.weight has the shape \[8, 16\]; config.json needs \[8, 24\]"),
        (torch.zeros(24), r"b.weight has the shape \[24\]; config.json needs \[24, 24\]"),
        (torch.zeros(12, 24), "b: 12 outputs cannot be divided into 8 for each of 1 processes"),
    ],
)
def test_a_dense_layer_that_does_not_fit_is_refused(hybrid_weight: Callable, weight: Tensor, message: str):
    packed = hybrid_weight((16, 24), TILE).packed
    (loader,) = loaders({"a": packed, "b": torch.zeros(8, 24)}, [16, 8], (24, 24), 1)
    with pytest.raises(InputError, match=message):
        loader.add(1, "weight", weight)


def test_missing_tensors_are_named(hybrid_weight: Callable):
    packed = hybrid_weight((16, 24), TILE).packed
    (loader,) = loaders({"a": packed, "b": torch.zeros(8, 24)}, [16, 8], (24, 24), 1)
    loader.add(0, "bits", packed.bits)
    assert loader.missing == ["a.values", "a.dense", "b.weight"]
