"""Attacks on packed layers and their operator, each in its own process; prints a JSON object, attack -> outcome.

Parts lie directly before protected memory, so that a read beyond their end raises a signal. Outcomes:

    refused TYPE: MESSAGE   an exception, before or at a forward call
    right                   all products equal those of the weight before the attack, or of the current buffers
    finished                the parts are no valid weight, and the products may be any numbers
    signal N
"""

from __future__ import annotations

import copy
import ctypes
import json
import mmap
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from patch.inference.backends import compiled
from patch.inference.custom_op import hybrid_linear
from patch.inference.linear import HybridLinear
from patch.inference.packed import PackedWeight, pack

CASES = {
    "vectors": ((32, 64), 32, torch.float32),
    "halves": ((32, 64), 32, torch.bfloat16),
    "pieces": ((12, 24), 12, torch.float32),
}
ROWS = (1, 3, 20, 40)
ATTACKS: dict[str, Callable[[HybridLinear], object]] = {}
KEPT: list[object] = []


def attack(function: Callable[[HybridLinear], object]) -> Callable[[HybridLinear], object]:
    ATTACKS[function.__name__] = function
    return function


def guarded(tensor: Tensor) -> Tensor:
    """Return a copy that ends where protected memory begins."""
    page = mmap.PAGESIZE
    size = -(-tensor.nbytes // page) * page
    memory = mmap.mmap(-1, size + page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), 0) == 0
    KEPT.append(memory)
    found = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=size - tensor.nbytes)
    return found.copy_(tensor.flatten()).view(tensor.shape)


def layer_of(shape: tuple[int, int], tile: int, dtype: torch.dtype) -> HybridLinear:
    """Return a layer whose tiles are alternately dense and sparse."""
    generator = torch.Generator().manual_seed(0)
    height, width = min(shape[0], tile), min(shape[1], tile)
    dense = torch.arange(shape[0] // height * (shape[1] // width)).view(shape[0] // height, -1) % 2 == 0
    kept = torch.rand(shape[0], shape[1] // 4, 4, generator=generator).argsort(-1) < 2
    mask = kept.view(shape) | dense.repeat_interleave(height, 0).repeat_interleave(width, 1)
    packed = pack(torch.randn(shape, generator=generator).to(dtype), mask, dense, tile)
    parts = map(guarded, (packed.dense, packed.values, packed.bits))
    return HybridLinear(PackedWeight(shape, tile, *parts), torch.zeros(shape[0], dtype=dtype))


def unpacked(shape: tuple[int, int], tile: int, dense: Tensor, values: Tensor, bits: Tensor) -> Tensor | None:
    """Unpack parts one value after the other; return None if they are no valid weight."""
    height, width = min(shape[0], tile), min(shape[1], tile)
    numbers, found = values.double().flatten().tolist(), torch.zeros(shape, dtype=torch.float64)
    numbers.reverse()
    flags = [byte >> i & 1 for byte in reversed(bits.flatten().tolist()) for i in reversed(range(8))]
    for i, j in ((i, j) for i in range(shape[0] // height) for j in range(shape[1] // width)):
        whole, padding = bool(dense[i, j]), -height * width % 8
        for row in range(i * height, (i + 1) * height):
            for column in range(j * width, (j + 1) * width, 4):
                group = [1] * 4 if whole else [flags.pop() for _ in range(4) if flags]
                if sum(group) != (4 if whole else 2) or len(numbers) < sum(group):
                    return None
                for place in (place for place in range(4) if group[place]):
                    found[row, column + place] = numbers.pop()
        flags = flags if whole else flags[: len(flags) - padding]
    return None if numbers or flags else found


def inputs_of(layer: HybridLinear, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, columns, generator=generator).to(layer._buffers["values"].dtype)


def same(found: Tensor, inputs: Tensor, weight: Tensor) -> bool:
    expected = inputs.double() @ weight.T
    return bool((found.double() - expected).abs().max() <= 2e-2 * expected.abs().max())


def by_layer(layer: HybridLinear, inputs: Tensor) -> Tensor:
    return layer(inputs)


def by_operator(layer: HybridLinear, inputs: Tensor) -> Tensor:
    """Multiply as a compiled layer does."""
    return hybrid_linear(inputs, layer.values, layer.bits, layer.dense, layer.out_features, layer.tile, layer.backend)


Multiply = Callable[[HybridLinear, Tensor], Tensor]


def made(
    shape: tuple[int, int], tile: int, dtype: torch.dtype, multiply: Multiply
) -> tuple[HybridLinear, Tensor, Multiply]:
    """Return a layer after a first use, its weight, and the way in which it was used."""
    layer = layer_of(shape, tile, dtype)
    weight = unpacked(shape, tile, layer.dense, layer.values, layer.bits)
    inputs = [inputs_of(layer, rows, shape[1]) for rows in ROWS]
    assert weight is not None and all(same(multiply(layer, x), x, weight) for x in inputs)
    return layer, weight, multiply


def outcome(
    name: str, shape: tuple[int, int], tile: int, layer: HybridLinear, before: Tensor, multiply: Multiply
) -> str:
    try:
        changed = ATTACKS[name](layer)
        attacked = changed if isinstance(changed, nn.Module) else layer
        products = {}
        for rows in ROWS:
            inputs = inputs_of(attacked, rows, shape[1])
            products[inputs] = multiply(attacked, inputs)
    except Exception as error:
        return f"refused {type(error).__name__}: {' '.join(str(error).split())}"
    if all(same(found, inputs, before) for inputs, found in products.items()):
        return "right"
    now = unpacked(shape, tile, *(attacked._buffers[part] for part in ("dense", "values", "bits")))
    if now is None:
        return "finished"
    return "right" if all(same(found, inputs, now) for inputs, found in products.items()) else "wrong"


def loading(changes: Callable[[dict[str, Tensor]], object], **options: bool) -> Callable[[HybridLinear], object]:
    def load(layer: HybridLinear) -> None:
        state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        changes(state)
        try:
            layer.load_state_dict(state, **options)
        except RuntimeError:
            # A refused state must change nothing.
            inputs = inputs_of(layer, 2, layer.in_features)
            layer(inputs)
            raise

    return load


def cut(state: dict[str, Tensor], name: str) -> None:
    state[name] = state[name][:-1].clone()


for options in ({}, {"strict": False}, {"assign": True}):
    label = "_".join(["load", *options])
    ATTACKS |= {
        f"{label}_wrong_bits": loading(lambda s: s["bits"].fill_(0xFF), **options),
        f"{label}_no_bits": loading(lambda s: s["bits"].zero_(), **options),
        f"{label}_all_dense": loading(lambda s: s["dense"].fill_(True), **options),
        f"{label}_all_sparse": loading(lambda s: s["dense"].fill_(False), **options),
        f"{label}_other_order": loading(lambda s: s["dense"].logical_not_(), **options),
        f"{label}_short_values": loading(lambda s: cut(s, "values"), **options),
        f"{label}_short_bits": loading(lambda s: cut(s, "bits"), **options),
        f"{label}_bits_as_numbers": loading(lambda s: s.update(bits=s["bits"].float() + 1), **options),
        f"{label}_values_as_integers": loading(lambda s: s.update(values=s["values"].int()), **options),
        f"{label}_strided": loading(lambda s: s.update(values=s["values"].repeat_interleave(2)[::2]), **options),
        f"{label}_not_a_tensor": loading(lambda s: s.update(bits="bits"), **options),
        f"{label}_no_storage": loading(lambda s: s["values"].untyped_storage().resize_(0), **options),
    }
ATTACKS["load_partly"] = loading(lambda s: [s.pop("values"), s.pop("bits"), s["dense"].fill_(True)], strict=False)


@attack
def load_assign_from_a_file_that_is_cut(layer: HybridLinear) -> None:
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: tensor.clone() for name, tensor in layer.state_dict().items()}, path)
        layer.load_state_dict(load_file(path), assign=True)
        os.truncate(path, 0)


@attack
def load_assign_then_change_what_was_given(layer: HybridLinear) -> None:
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)
    state["bits"].numpy()[:] = 0xFF
    state["dense"].numpy()[:] = True
    state["values"].untyped_storage().resize_(0)


# Writes in place that PyTorch counts.
ATTACKS |= {
    "fill_bits": lambda layer: layer.bits.fill_(0xFF),
    "zero_bits": lambda layer: layer.bits.zero_(),
    "one_bit": lambda layer: layer.bits[-1:].bitwise_xor_(0x80),
    "all_dense": lambda layer: layer.dense.fill_(True),
    "all_sparse": lambda layer: layer.dense.zero_(),
    "other_values": lambda layer: layer.values.mul_(3),
    "other_bits": lambda layer: layer.bits.copy_(layer.bits.clone().fill_(0b1010_0101)),
    "resize_values": lambda layer: layer.values.set_(layer.values[:8].clone()),
    "resize_bits": lambda layer: layer.bits.set_(layer.bits[:1].clone()),
    "set_dense": lambda layer: layer.dense.set_(torch.ones(1, 1, dtype=torch.bool)),
    "squeeze_and_stretch": lambda layer: layer.values.as_strided_((layer.values.numel(),), (0,)),
}


# Writes in place that PyTorch does not count.
ATTACKS |= {
    "numpy_bits": lambda layer: layer.bits.numpy().fill(0xFF),
    "numpy_no_bits": lambda layer: layer.bits.numpy().fill(0),
    "numpy_some_bits": lambda layer: layer.bits.numpy().fill(0b0001_0111),
    "numpy_dense": lambda layer: layer.dense.numpy().fill(True),
    "numpy_sparse": lambda layer: layer.dense.numpy().fill(False),
    "numpy_dense_of_two": lambda layer: layer.dense.numpy().view("uint8").fill(2),
    "numpy_values": lambda layer: layer.values.view(torch.uint8).numpy().fill(0),
    "data_bits": lambda layer: layer.bits.data.fill_(0xFF),
    "data_dense": lambda layer: layer.dense.data.fill_(True),
    "storage_bits": lambda layer: layer.bits.untyped_storage().fill_(0),
}


def replacing(name: str, change: Callable[[Tensor], object], how: str) -> Callable[[HybridLinear], object]:
    def replace(layer: HybridLinear) -> None:
        new = change(getattr(layer, name))
        if how == "data":
            getattr(layer, name).data = new
        elif how == "attribute":
            setattr(layer, name, new)
        elif how == "buffers":
            layer._buffers[name] = new
        else:
            object.__setattr__(layer.packed, name, new)

    return replace


for how in ("data", "attribute", "buffers", "frozen"):
    ATTACKS |= {
        f"{how}_short_values": replacing("values", lambda t: t[:64], how),
        f"{how}_shorter_values": replacing("values", lambda t: t[:-1].clone(), how),
        f"{how}_short_bits": replacing("bits", lambda t: t[:1].clone(), how),
        f"{how}_wrong_bits": replacing("bits", lambda t: torch.full_like(t, 0xFF), how),
        f"{how}_all_dense": replacing("dense", torch.ones_like, how),
        f"{how}_all_sparse": replacing("dense", torch.zeros_like, how),
        f"{how}_half_values": replacing("values", lambda t: t.half(), how),
        f"{how}_integers": replacing("values", lambda t: t.char(), how),
        f"{how}_stretched_values": replacing("values", lambda t: t[:1].expand(len(t)), how),
        f"{how}_turned_values": replacing("values", lambda t: t.flip(0).repeat_interleave(2)[::2], how),
        f"{how}_meta_values": replacing("values", lambda t: t.to("meta"), how),
        f"{how}_sparse_values": replacing("values", lambda t: t.to_sparse(), how),
        f"{how}_longer_dense": replacing("dense", lambda t: t.repeat(2, 2), how),
    }
for how in ("attribute", "buffers", "frozen"):
    ATTACKS[f"{how}_nothing"] = replacing("bits", lambda t: None, how)


@attack
def delete_a_buffer(layer: HybridLinear) -> None:
    del layer.bits


@attack
def cut_the_storage_of_values(layer: HybridLinear) -> None:
    layer.values = layer.values.clone()
    layer(inputs_of(layer, 1, layer.in_features))
    layer.values.untyped_storage().resize_(0)


@attack
def cut_the_storage_of_bits(layer: HybridLinear) -> None:
    layer.bits = layer.bits.clone()
    layer(inputs_of(layer, 1, layer.in_features))
    layer.bits.untyped_storage().resize_(1)


@attack
def cut_the_storage_of_dense(layer: HybridLinear) -> None:
    layer.dense = layer.dense.clone()
    layer.dense.untyped_storage().resize_(0)


@attack
def cut_and_grow_back_elsewhere(layer: HybridLinear) -> None:
    layer.values = layer.values.clone()
    layer(inputs_of(layer, 1, layer.in_features))
    storage, size = layer.values.untyped_storage(), layer.values.nbytes
    storage.resize_(0)
    KEPT.append([torch.empty(size, dtype=torch.uint8) for _ in range(64)])
    storage.resize_(size)
    layer.values.fill_(2)


@attack
def share_with_processes(layer: HybridLinear) -> None:
    layer.share_memory()


@attack
def swap_tensors(layer: HybridLinear) -> None:
    layer.bits = layer.bits.clone()
    layer(inputs_of(layer, 1, layer.in_features))
    torch.utils.swap_tensors(layer.bits, torch.zeros(1, dtype=torch.uint8))


@attack
def columns_and_tile(layer: HybridLinear) -> None:
    layer.in_features, layer.tile = layer.in_features * 2, 4
    layer(torch.zeros(2, layer.in_features, dtype=layer.values.dtype))


@attack
def narrow_inputs(layer: HybridLinear) -> None:
    layer.in_features //= 4
    layer(inputs_of(layer, 3, layer.in_features))


@attack
def a_frozen_shape(layer: HybridLinear) -> None:
    object.__setattr__(layer.packed, "shape", (4096, 4096))
    object.__setattr__(layer.packed, "tile", 4096)


@attack
def copied_then_changed(layer: HybridLinear) -> HybridLinear:
    other = copy.deepcopy(layer)
    layer.bits.fill_(0xFF)
    layer.dense.fill_(True)
    return other


@attack
def changed_then_copied(layer: HybridLinear) -> HybridLinear:
    layer.dense.numpy().fill(True)
    return copy.deepcopy(layer)


@attack
def copied_weight(layer: HybridLinear) -> HybridLinear:
    packed = copy.deepcopy(layer.packed)
    packed.bits.zero_()
    return HybridLinear(copy.copy(packed), None)


@attack
def there_and_back(layer: HybridLinear) -> HybridLinear:
    return layer.double().bfloat16().to(torch.float32)


@attack
def to_other_kinds(layer: HybridLinear) -> HybridLinear:
    return layer._apply(lambda tensor: tensor.to(torch.int16))


@attack
def emptied(layer: HybridLinear) -> HybridLinear:
    return layer.to_empty(device="cpu")


@attack
def under_inference_mode(layer: HybridLinear) -> HybridLinear:
    with torch.inference_mode():
        layer = layer.bfloat16()
        layer(inputs_of(layer, 1, layer.in_features))
        layer.dense.fill_(True)
    return layer


@attack
def made_under_inference_mode(layer: HybridLinear) -> HybridLinear:
    with torch.inference_mode():
        parts = (layer.dense.clone(), layer.values.clone(), layer.bits.clone())
        other = HybridLinear(PackedWeight((layer.out_features, layer.in_features), layer.tile, *parts))
        other(inputs_of(other, 1, other.in_features))
        other.bits.fill_(0xFF)
    return other


def making(**changes: object) -> Callable[[HybridLinear], object]:
    def make(layer: HybridLinear) -> HybridLinear:
        shape = (layer.out_features, layer.in_features)
        parts = {"shape": shape, "tile": layer.tile, "dense": layer.dense, "values": layer.values, "bits": layer.bits}
        changed = {name: new(parts[name]) if callable(new) else new for name, new in changes.items()}
        return HybridLinear(PackedWeight(**parts | changed))

    return make


ATTACKS |= {
    "make_all_dense": making(dense=torch.ones_like),
    "make_wrong_bits": making(bits=torch.zeros_like),
    "make_short_values": making(values=lambda t: t[:-1]),
    "make_other_shape": making(shape=lambda shape: (shape[0] * 2, shape[1])),
    "make_negative_shape": making(shape=lambda shape: (-shape[0], shape[1])),
    "make_huge_shape": making(shape=(2**62, 2**62)),
    "make_text_shape": making(shape="ab"),
    "make_tile_0": making(tile=0),
    "make_tile_true": making(tile=True),
    "make_integers": making(values=lambda t: t.int()),
    "make_lists": making(bits=lambda t: t.tolist()),
    "make_subclass": making(bits=lambda t: t.as_subclass(type("Odd", (Tensor,), {"data_ptr": lambda self: 8}))),
}


def replacing_in_use(name: str, change: Callable[[Tensor], object]) -> Callable[[HybridLinear], object]:
    """Return an attack on a packed weight that is used without a layer."""

    def replace(layer: HybridLinear) -> nn.Module:
        packed, replaced = layer.packed, nn.Module()
        object.__setattr__(packed, name, change(getattr(packed, name)))
        replaced.forward = lambda inputs: compiled.multiply(packed, inputs)
        replaced._buffers = {part: getattr(packed, part) for part in ("dense", "values", "bits")}
        return replaced

    return replace


ATTACKS |= {
    "weight_short_values": replacing_in_use("values", lambda t: t[:64]),
    "weight_short_bits": replacing_in_use("bits", lambda t: t[:1].clone()),
    "weight_wrong_bits": replacing_in_use("bits", torch.zeros_like),
    "weight_all_dense": replacing_in_use("dense", torch.ones_like),
    "weight_meta_values": replacing_in_use("values", lambda t: t.to("meta")),
    "weight_other_values": replacing_in_use("values", lambda t: t * 2),
    "weight_shape": replacing_in_use("shape", lambda shape: (2**30, 2**30)),
    "weight_tile": replacing_in_use("tile", lambda tile: 2**30),
}


def calling(inputs: Callable[[Tensor], Tensor]) -> Callable[[HybridLinear], object]:
    """Return an attack that calls the backend directly, without the checks of the layer."""

    def call(layer: HybridLinear) -> None:
        compiled.multiply(layer.packed, inputs(inputs_of(layer, 3, layer.in_features)))

    return call


def without_storage(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


ATTACKS |= {
    "call_narrow": calling(lambda x: x[:, :4].contiguous()),
    "call_half": calling(lambda x: x.half()),
    "call_double": calling(lambda x: x.double()),
    "call_meta": calling(lambda x: x.to("meta")),
    "call_vector": calling(lambda x: x[0]),
    "call_without_storage": calling(without_storage),
}


@attack
def call_with_half_weight(layer: HybridLinear) -> None:
    layer.half()
    compiled.multiply(layer.packed, inputs_of(layer, 3, layer.in_features))


def in_a_child(name: str, *case: object) -> str:
    """Return the outcome of an attack in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, outcome(name, *case).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return text if status == 0 else f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no outcome"


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, str]] = {name: {} for name in ATTACKS}
    for label, (shape, tile, dtype) in CASES.items():
        for way, multiply in (("", by_layer), (" by the operator", by_operator)):
            case = made(shape, tile, dtype, multiply)
            for name in ATTACKS:
                found[name][label + way] = in_a_child(name, shape, tile, *case)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
