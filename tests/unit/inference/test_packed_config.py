"""Descriptions of packed layers: sizes as an independent count gives them, and every fault refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from patch.errors import InputError
from patch.inference.linear import HybridLinear
from patch.inference.packed import packed_bytes
from patch.inference.packed_config import PackedLayer, parse_config

NAME = "model.layers.0.mlp.up_proj"
LAYER = {"shape": [64, 96], "tile": 32, "sparse_tiles": 4}
GOOD = {"quant_method": "patch-hybrid", "format": 1, "layers": {NAME: LAYER}}


@pytest.mark.parametrize(("shape", "tile"), [((64, 96), 32), ((12, 24), 12), ((40, 24), 8), ((24, 20), 100)])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_sizes_are_those_of_a_packed_weight(
    fraction: float, shape: tuple[int, int], tile: int, hybrid_weight: Callable
) -> None:
    made = hybrid_weight(shape, tile, fraction, torch.bfloat16)
    layer = HybridLinear(made.packed, torch.ones(shape[0], dtype=torch.bfloat16))
    assert layer.description.sparse_tiles == int((~made.dense).sum())
    empty = HybridLinear.empty(PackedLayer(**layer.description.model_dump()), True, torch.bfloat16)
    found, expected = empty.state_dict(), layer.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
        name: (t.shape, t.dtype) for name, t in expected.items()
    }
    assert {tensor.device.type for tensor in found.values()} == {"meta"} and repr(empty) == repr(layer)
    assert list(HybridLinear.empty(layer.description, False, torch.float32).state_dict()) == ["values", "bits", "dense"]
    total = sum(expected[name].nbytes for name in ("values", "bits", "dense"))
    assert total == packed_bytes(shape, tile, int(made.dense.sum()), 2)


def test_a_description_comes_back_as_it_was() -> None:
    config = parse_config(json.loads(json.dumps(GOOD)))
    assert config.to_dict() == GOOD and parse_config(config.to_dict()) == config
    assert config.layers[NAME].sizes == (64, 96) and config.layers[NAME].tiles == 6
    # Two dense tiles of 1024 values and four of 512; 128 bytes of bits each; a map of 2 x 3.
    assert {name: tuple(spec) for name, spec in config.tensors().items()} == {
        f"{NAME}.values": ((4096,), None),
        f"{NAME}.bits": ((512,), "uint8"),
        f"{NAME}.dense": ((2, 3), "bool"),
    }


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *[(value, "expected a JSON object") for value in (None, [], 3, "x")],
        ({}, "the quant_method is None; this software reads 'patch-hybrid'"),
        (GOOD | {"quant_method": "awq"}, "the quant_method is 'awq'"),
        (GOOD | {"quant_method": ["patch-hybrid"]}, "the quant_method is "),
        (GOOD | {"format": 2}, "format 2 is newer than 1, the newest that this version reads"),
        (GOOD | {"format": 10**400}, "is newer than 1"),
        *[(GOOD | {"format": value}, "`format`") for value in (0, -1, 1.0, True, "1", None)],
        ({key: GOOD[key] for key in ("quant_method", "format")}, "`layers`"),
        *[(GOOD | {"layers": value}, "`layers`") for value in ({}, [], None, 3)],
        (GOOD | {"layers": {3: LAYER}}, "`layers"),
        (GOOD | {"layers": {"": LAYER}}, "`layers"),
        (GOOD | {"layers": {"a\nb": LAYER}}, r"a name has no control characters"),
        (GOOD | {"more": 1}, "`more`"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_damaged_description(value: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        parse_config(value, "here")
    assert str(error.value).startswith("here: ") and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "changes",
    [
        *({"shape": None}, {"shape": 64}, {"shape": [64]}, {"shape": [64, 96, 1]}, {"shape": "ab"}, {"shape": {}}),
        *({"shape": [0, 96]}, {"shape": [-64, 96]}, {"shape": [64.0, 96]}, {"shape": ["64", 96]}, {"shape": [65, 96]}),
        *({"shape": [2**31, 96]}, {"shape": [10**400, 96]}, {"shape": [True, 96]}),
        *({"tile": 0}, {"tile": -32}, {"tile": 7}, {"tile": 32.0}, {"tile": True}, {"tile": None}, {"tile": 2**40}),
        *({"sparse_tiles": 7}, {"sparse_tiles": -1}, {"sparse_tiles": 2**62}, {"sparse_tiles": "4"}, {"more": 1}),
    ],
    ids=str,
)
def test_a_damaged_layer(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"here: `layers.{NAME}") as error:
        parse_config(GOOD | {"layers": {NAME: LAYER | changes}}, "here")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    for key in LAYER:
        with pytest.raises(InputError, match=f"`layers.{NAME}.{key}`: Field required"):
            parse_config(GOOD | {"layers": {NAME: {k: v for k, v in LAYER.items() if k != key}}})
