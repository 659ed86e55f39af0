"""Descriptions of packed layers: sizes as an independent count gives them, and every fault refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from patch.errors import InputError
from patch.inference.linear import HybridLinear
from patch.inference.packed import packed_bytes
from patch.inference.packed_config import PackedConfig, PackedLayer, parse_config
from patch.inference.weight_files import check_folder, read_headers

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


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes files of tensors, and an index if there are several, into a folder."""

    def write(*files: dict[str, torch.Tensor]) -> Path:
        names = [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
        names = names if len(files) > 1 else ["model.safetensors"]
        for name, tensors in zip(names, files, strict=True):
            save_file(tensors, tmp_path / name)
        if len(files) > 1:
            index = {key: name for name, tensors in zip(names, files, strict=True) for key in tensors}
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        return tmp_path

    return write


def parts(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    specs = PackedConfig(layers={NAME: PackedLayer(**LAYER)}).tensors()
    return {
        name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype) if spec.dtype else dtype)
        for name, spec in specs.items()
    }


def test_a_folder_is_compared_by_its_headers(stored: Callable) -> None:
    config, good = parse_config(GOOD), parts()
    check_folder(stored(good), config)
    values = {f"{NAME}.values": good[f"{NAME}.values"], f"{NAME}.bias": torch.zeros(64), "other.weight": torch.ones(1)}
    folder = stored({name: t for name, t in good.items() if name not in values}, values)
    check_folder(folder, config)
    assert read_headers(folder.glob("model-*"))[f"{NAME}.values"] == (
        *("bfloat16", (4096,)),
        folder / "model-00002-of-00002.safetensors",
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(f"{NAME}.bits"), f"its weight files lack {NAME}.bits"),
        (lambda t: t.update({f"{NAME}.weight": torch.ones(64, 96)}), "is not a tensor of a packed layer"),
        (lambda t: t.update({f"{NAME}.bits": torch.zeros(511, dtype=torch.uint8)}), r"bits has the shape \[511\]"),
        (lambda t: t.update({f"{NAME}.dense": torch.zeros(3, 2, dtype=torch.bool)}), r"\[3, 2\]; .* needs \[2, 3\]"),
        (lambda t: t.update({f"{NAME}.dense": torch.zeros(2, 3, dtype=torch.uint8)}), "dtype uint8; expected bool"),
        (lambda t: t.update({f"{NAME}.values": torch.zeros(4096, dtype=torch.int16)}), "int16; expected floating"),
    ],
)
def test_a_folder_that_does_not_fit(change: Callable, reason: str, stored: Callable) -> None:
    tensors = parts()
    change(tensors)
    with pytest.raises(InputError, match=reason):
        check_folder(stored(tensors), parse_config(GOOD))


def test_damaged_files(stored: Callable) -> None:
    config, folder = parse_config(GOOD), stored(parts(), parts())
    with pytest.raises(InputError, match=f"00002.safetensors: '{NAME}.bits' is also in model-00001-of-00002"):
        read_headers(sorted(folder.glob("model-*")))
    index = folder / "model.safetensors.index.json"
    for value in ([], {}, {"weight_map": 3}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../b.safetensors"}}):
        index.write_text(json.dumps(value))
        with pytest.raises(InputError, match="index.json: "):
            check_folder(folder, config)
    index.write_text(json.dumps({"weight_map": {"a": "model-00003-of-00003.safetensors"}}))
    with pytest.raises(InputError, match="00003-of-00003.safetensors: no such file; copy the whole folder"):
        check_folder(folder, config)
    index.unlink()
    with pytest.raises(InputError, match="model.safetensors: no such file"):
        check_folder(folder, config)
    path = stored(parts()) / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 4, 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="model.safetensors: truncated or not a safetensors file"):
            check_folder(folder, config)
