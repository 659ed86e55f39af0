"""Attacks on tensor files: masks, updated weights, quantized layers and input statistics.

`attack(rng, folder)` writes one valid file into ``folder``, damages it, reads it, and returns the kind of file and the
outcome, such as `mask: refused`. All randomness comes from ``rng``, a `random.Random`. The outcomes are

- `refused`: an `InputError` of one line;
- `same`: the damage has no effect, and the written facts are read;
- `sound`: after a change with a correct checksum, the file holds other facts that satisfy its schema.

It raises `AssertionError` for any other outcome: another exception, or other facts that are not allowed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from patch.calibration.input_statistics import FORMAT as STATISTICS
from patch.calibration.input_statistics import InputStatistics, load_statistics, save_statistics
from patch.files.tensors import load_tensors, save_tensors
from patch.masks.header import FORMAT as MASK
from patch.masks.header import read_header
from patch.masks.nm import NM, nm_mask
from patch.masks.packed import MaskSet, load_masks, save_masks
from patch.pruning.weights import read_weights, save_weights
from patch.pruning.weights_header import FORMAT as WEIGHTS
from patch.quantization.absmax import quantize
from patch.quantization.model import QuantizedLayer
from patch.quantization.quantized_files import FORMAT as QUANTIZED
from patch.quantization.quantized_files import load_layers, save_layers
from patch.quantization.slim_lora import Adapter

from ._damage import damaged_bytes, damaged_json, hostile_text, outcome


@dataclass(frozen=True)
class Kind:
    """File format with functions that write a valid file, read one into comparable facts, and check other facts."""

    format: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    sound: Callable[[Any], None]


def attack(rng: Random, folder: Path) -> str:
    """Write, damage and read one file, and return the outcome; see above."""
    name = rng.choice(list(KINDS))
    kind, path = KINDS[name], folder / "attacked.safetensors"
    kind.write(path)
    original = kind.read(path)
    way = rng.choice((_change_bytes, _change_values, _change_values, _change_text, _swap))
    sound = way(rng, path, kind)
    # A dry run reads the header of any file and ignores damaged ones.
    read_header(path)
    return f"{name}: {outcome(lambda: kind.read(path), original, sound)}"


def _change_bytes(rng: Random, path: Path, kind: Kind) -> None:
    path.write_bytes(damaged_bytes(rng, path.read_bytes()))


def _change_values(rng: Random, path: Path, kind: Kind) -> Callable[[Any], None]:
    """Change the header or a tensor, with a correct checksum."""
    header, tensors = load_tensors(path, kind.format, "file")
    if rng.random() < 0.6:
        header = damaged_json(rng, header)
    else:
        _change_tensor(rng, tensors)
    try:
        save_tensors(path, kind.format, header, tensors)
    except (TypeError, ValueError):
        # Infinity, and values that are no JSON objects, cannot be written.
        return kind.sound
    return kind.sound


def _change_tensor(rng: Random, tensors: dict[str, Tensor]) -> None:
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    flat = tensor.reshape(-1)
    place = rng.randrange(len(flat))
    match rng.randrange(7):
        case 0:
            del tensors[name]
        case 1:
            tensors[name + "x"] = tensor.clone()
        case 2:
            tensors[name] = flat[:-1].clone()
        case 3:
            tensors[name] = tensor.to(rng.choice((torch.float64, torch.int8, torch.bool, torch.bfloat16)))
        case 4:
            tensors[name] = tensor[None]
        case 5 if tensor.is_floating_point():
            flat[place] = rng.choice((float("nan"), float("inf"), -1.0, 0.0, 1e38))
        case _:
            flat.view(torch.uint8)[rng.randrange(flat.nbytes)] ^= 1 << rng.randrange(8)


def _change_text(rng: Random, path: Path, kind: Kind) -> None:
    """Insert hostile text into the header, with a correct length."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    outer = json.loads(content[8 : 8 + length])
    if rng.random() < 0.5:
        outer["__metadata__"]["patch"] = hostile_text(rng, outer["__metadata__"]["patch"])
        text = json.dumps(outer)
    else:
        text = hostile_text(rng, json.dumps(outer))
    path.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + content[8 + length :])


def _swap(rng: Random, path: Path, kind: Kind) -> None:
    """Replace the file by a valid file of another format."""
    rng.choice([other for other in KINDS.values() if other.format != kind.format]).write(path)


def _facts(tensors: Mapping[str, Tensor]) -> dict[str, tuple]:
    return {
        name: (str(t.dtype), tuple(t.shape), t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _masks(pattern: str) -> MaskSet:
    mask, provenance = nm_mask(_random(8, 12), NM(2, 4)), {"digest": "abc", "cost": {"seconds": 1.5}}
    if pattern != "hybrid":
        layers = {"a": mask, "b": mask[:3, :4]} if pattern == "2:4" else {"a": _random(3, 7) > 0}
        return MaskSet(layers, pattern, header=provenance)
    mask[:4, :4] = mask[4:, 8:] = True
    tiles = torch.tensor([[True, False, False], [False, False, True]])
    return MaskSet({"a": mask}, pattern, {"a": tiles}, 4, provenance)


def _read_masks(path: Path) -> dict[str, Any]:
    found = load_masks(path)
    return {
        "pattern": found.pattern,
        "tile": found.tile,
        "provenance": found.header,
        "tensors": _facts(found.masks),
    } | {
        "found": _Hidden(found),
        "tiles": _facts(found.tiles),
    }


class _Hidden:
    """Data beside the facts, which is not compared."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)


def _sound_masks(facts: dict[str, Any]) -> None:
    found: MaskSet = facts["found"].value
    assert found.masks and isinstance(found.header, dict)
    json.dumps(found.header)
    for name, mask in found.masks.items():
        assert mask.dtype == torch.bool and mask.ndim == 2 and mask.numel() and isinstance(name, str)
        if found.pattern == "unstructured":
            assert found.tile is None and not found.tiles
            continue
        n, m = (2, 4) if found.pattern == "hybrid" else map(int, found.pattern.split(":"))
        assert 0 < n <= m
        kept = mask.reshape(len(mask), -1, m).sum(-1)
        if found.pattern == "hybrid":
            tiles, (rows, columns) = found.tiles[name], mask.shape
            for row, column in ((r, c) for r in range(tiles.shape[0]) for c in range(tiles.shape[1])):
                height, width = rows // tiles.shape[0], columns // tiles.shape[1]
                tile = mask[row * height : (row + 1) * height, column * width : (column + 1) * width]
                assert tile.all() if tiles[row, column] else (tile.reshape(height, -1, 4).sum(-1) <= 2).all()
        else:
            assert (kept <= n).all()


def _linears() -> dict[str, nn.Module]:
    linears = {"a": nn.Linear(4, 3, bias=False), "b": nn.Linear(3, 2, bias=False)}
    for linear in linears.values():
        linear.weight.data = _random(*linear.weight.shape)
    return linears


def _sound_weights(facts: dict[str, tuple]) -> None:
    assert {name: fact[:2] for name, fact in facts.items()} == {
        "a": ("torch.float32", (3, 4)),
        "b": ("torch.float32", (2, 3)),
    }
    assert all(torch.frombuffer(bytearray(fact[2]), dtype=torch.float32).isfinite().all() for fact in facts.values())


def _write_layers(path: Path) -> None:
    layers = {
        "a": QuantizedLayer(quantize(_random(3, 7), 4, 4), Adapter(_random(3, 2), _random(2, 7))),
        "b": QuantizedLayer(quantize(_random(2, 4), 8, 128)),
    }
    save_layers(path, layers, "abc", {"seconds": 1.5, "peak_memory_mb": 20.0})


def _read_layers(path: Path) -> dict[str, Any]:
    layers, cost = load_layers(path)
    facts = {}
    for name, layer in layers.items():
        tensors = {"codes": layer.weight.codes, "scales": layer.weight.scales}
        if layer.adapter:
            tensors |= {"left": layer.adapter.left, "right": layer.adapter.right}
        facts[name] = (layer.weight.bits, layer.weight.group_size, _facts(tensors))
    return {"cost": cost, "layers": facts, "found": _Hidden(layers)}


def _sound_layers(facts: dict[str, Any]) -> None:
    assert all(value >= 0 and value < float("inf") for value in facts["cost"].values())
    for layer in facts["found"].value.values():
        weight = layer.weight.dequantize()
        assert weight.isfinite().all() and 2 <= layer.weight.bits <= 8
        assert layer.weight.codes.int().abs().max() <= 2 ** (layer.weight.bits - 1) and (layer.weight.scales > 0).all()
        if layer.adapter:
            product = (layer.adapter.left.double() @ layer.adapter.right.double()).shape
            assert product == weight.shape and layer.adapter.left.isfinite().all()
            assert layer.adapter.right.isfinite().all()


def _write_statistics(path: Path) -> None:
    x = _random(5, 4)
    shared = InputStatistics(x.square().sum(0), x.T @ x, 2)
    save_statistics(path, {"a": shared, "b": shared, "c": InputStatistics(x.square().sum(0), x.T @ x, 2)})


def _read_statistics(path: Path) -> dict[str, Any]:
    norms, found = load_statistics(path, gram=False), load_statistics(path)
    assert all(torch.equal(norms[name].squares, statistics.squares) for name, statistics in found.items())
    facts = {name: (s.sequences, _facts({"squares": s.squares, "gram": s.gram})) for name, s in found.items()}
    return facts | {"found": _Hidden(found)}


def _sound_statistics(facts: dict[str, Any]) -> None:
    for statistics in facts["found"].value.values():
        assert statistics.sequences >= 1 and statistics.squares.ndim == 1
        assert statistics.gram.shape == (len(statistics.squares), len(statistics.squares))
        assert statistics.norms.isfinite().all() and statistics.gram.isfinite().all()


KINDS = {
    "hybrid mask": Kind(MASK, lambda path: save_masks(path, _masks("hybrid")), _read_masks, _sound_masks),
    "2:4 mask": Kind(MASK, lambda path: save_masks(path, _masks("2:4")), _read_masks, _sound_masks),
    "unstructured mask": Kind(MASK, lambda path: save_masks(path, _masks("unstructured")), _read_masks, _sound_masks),
    "weights": Kind(
        WEIGHTS,
        lambda path: save_weights(path, _linears(), "abc"),
        lambda path: _facts(read_weights(path, _linears())),
        _sound_weights,
    ),
    "quantised layers": Kind(QUANTIZED, _write_layers, _read_layers, _sound_layers),
    "statistics": Kind(STATISTICS, _write_statistics, _read_statistics, _sound_statistics),
}
