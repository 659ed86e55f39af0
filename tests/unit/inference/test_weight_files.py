"""Headers of weight files: compared with a description, and damaged files refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from patch.errors import InputError
from patch.inference.packed_config import PackedConfig, PackedLayer
from patch.inference.weight_files import check_folder, read_headers

NAME = "model.layers.0.mlp.up_proj"
CONFIG = PackedConfig(layers={NAME: PackedLayer(shape=[64, 96], tile=32, sparse_tiles=4)})


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
    """Return the layer's tensors: two dense tiles of 1024 values, four sparse ones of 512 and 128 bytes of bits."""
    return {
        f"{NAME}.values": torch.zeros(4096, dtype=dtype),
        f"{NAME}.bits": torch.zeros(512, dtype=torch.uint8),
        f"{NAME}.dense": torch.zeros(2, 3, dtype=torch.bool),
    }


def test_a_folder_is_compared_by_its_headers(stored: Callable) -> None:
    good = parts()
    check_folder(stored(good), CONFIG)
    values = {f"{NAME}.values": good[f"{NAME}.values"], f"{NAME}.bias": torch.zeros(64), "other.weight": torch.ones(1)}
    folder = stored({name: t for name, t in good.items() if name not in values}, values)
    check_folder(folder, CONFIG)
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
        check_folder(stored(tensors), CONFIG)


def test_damaged_files(stored: Callable) -> None:
    folder = stored(parts(), parts())
    with pytest.raises(InputError, match=f"00002.safetensors: '{NAME}.bits' is also in model-00001-of-00002"):
        read_headers(sorted(folder.glob("model-*")))
    index = folder / "model.safetensors.index.json"
    for value in ([], {}, {"weight_map": 3}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../b.safetensors"}}):
        index.write_text(json.dumps(value))
        with pytest.raises(InputError, match="index.json: "):
            check_folder(folder, CONFIG)
    index.write_text(json.dumps({"weight_map": {"a": "model-00003-of-00003.safetensors"}}))
    with pytest.raises(InputError, match="00003-of-00003.safetensors: no such file; copy the whole folder"):
        check_folder(folder, CONFIG)
    index.unlink()
    with pytest.raises(InputError, match="model.safetensors: no such file"):
        check_folder(folder, CONFIG)
    path = stored(parts()) / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 4, 100, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="model.safetensors: truncated or not a safetensors file"):
            check_folder(folder, CONFIG)
