"""Mask files: what is written is read back, and what is broken is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from patch.errors import InputError
from patch.masks.nm import NM, nm_mask
from patch.masks.packed import MaskSet, _pack, _unpack, apply_masks, load_masks, save_masks
from patch.models import prunable_linears, weight_matrix


def two_four(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return nm_mask(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), NM(2, 4))


def hybrid() -> MaskSet:
    mask = two_four((8, 12))
    tiles = torch.tensor([[True, False, False], [False, False, True]])
    mask[:4, :4] = True
    mask[4:, 8:] = True
    return MaskSet({"a": mask}, "hybrid", {"a": tiles}, 4, {"method": "patch-joint"})


@given(st.integers(1, 9), st.integers(1, 17), st.integers(0, 1000))
def test_bits_round_trip_for_odd_sizes(rows: int, columns: int, seed: int) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = _pack(mask)
    assert packed.dtype == torch.uint8 and packed.numel() == (rows * columns + 7) // 8
    # First weight in the highest bit, as in the published masks.
    assert int(packed[0]) >> 7 == int(mask[0, 0])
    assert packed.numpy().tobytes() == np.packbits(mask.numpy().flatten()).tobytes()
    assert torch.equal(_unpack(packed, [rows, columns]), mask)


def test_file_round_trip(tmp_path: Path) -> None:
    masks = hybrid()
    masks.header = {"method": "patch-joint", "digest": "abc", "cost": {"seconds": 1.5}}
    save_masks(tmp_path / "m.safetensors", masks)
    loaded = load_masks(tmp_path / "m.safetensors")
    assert torch.equal(loaded.masks["a"], masks.masks["a"]) and loaded.masks["a"].dtype == torch.bool
    assert torch.equal(loaded.tiles["a"], masks.tiles["a"])
    assert (loaded.pattern, loaded.tile) == ("hybrid", 4)
    assert loaded.header["cost"] == {"seconds": 1.5} and loaded.header["digest"] == "abc"
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    again = tmp_path / "again.safetensors"
    save_masks(again, loaded)
    assert torch.equal(load_masks(again).masks["a"], masks.masks["a"])


def test_unstructured_odd_sizes_round_trip(tmp_path: Path) -> None:
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    save_masks(tmp_path / "m.safetensors", MaskSet({"x": mask}, "unstructured"))
    assert torch.equal(load_masks(tmp_path / "m.safetensors").masks["x"], mask)


def test_sparsity_and_density_count_zeros() -> None:
    masks = MaskSet({"a": torch.ones(2, 4).bool(), "b": torch.tensor([[1, 0, 0, 0]]).bool()}, "unstructured")
    assert masks.sparsity == pytest.approx(3 / 12)
    assert masks.density() == {"a": 1.0, "b": 0.25}


def test_broken_group_is_named() -> None:
    mask = two_four((3, 8))
    mask[2, 4:8] = torch.tensor([True, True, True, False])
    with pytest.raises(InputError, match="mask of layer.q: row 2, weights 4 to 7 break 2:4"):
        MaskSet({"layer.q": mask}, "2:4").verify()
    MaskSet({"layer.q": mask}, "unstructured").verify()
    MaskSet({"layer.q": mask}, "3:4").verify()


def test_zero_in_a_dense_tile_is_found() -> None:
    masks = hybrid()
    masks.verify()
    masks.masks["a"][0, 1] = False
    with pytest.raises(InputError, match="marked dense has zeros"):
        masks.verify()


def test_broken_group_in_a_sparse_tile_is_found_and_dense_tiles_are_free() -> None:
    masks = hybrid()
    masks.masks["a"][5, 4:8] = True
    with pytest.raises(InputError, match="row 5, weights 4 to 7"):
        masks.verify()


def test_a_mask_that_breaks_its_pattern_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        save_masks(tmp_path / "m.safetensors", MaskSet({"a": torch.ones(1, 4).bool()}, "2:4"))
    assert list(tmp_path.iterdir()) == []


def test_missing_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load_masks(path)
    save_masks(path, hybrid())
    whole = path.read_bytes()
    for size in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="m.safetensors"):
            load_masks(path)
    path.write_bytes(b"PK\x03\x04 something else entirely")
    with pytest.raises(InputError, match="m.safetensors"):
        load_masks(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(InputError, match="not written by this software"):
        load_masks(path)
    with pytest.raises(InputError, match="m"):
        load_masks(tmp_path)


def rewrite(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Change the header and the tensors of a mask file as if it had been damaged."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["patch"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, metadata={"patch": json.dumps(header)})


DAMAGE: dict[str, Callable[[dict, dict], None]] = {
    "shape": lambda header, tensors: header["shapes"].update(a=[8, 16]),
    "shape-of-tiles": lambda header, tensors: header["shapes"].update(a=[6, 16]),
    "mask-gone": lambda header, tensors: tensors.pop("a.mask"),
    "tiles-gone": lambda header, tensors: tensors.pop("a.tiles"),
    "too-few-bits": lambda header, tensors: tensors.update({"a.mask": tensors["a.mask"][:-1].clone()}),
    "wrong-type": lambda header, tensors: tensors.update({"a.mask": tensors["a.mask"].to(torch.int32)}),
    "flipped-bits": lambda header, tensors: tensors.update({"a.mask": ~tensors["a.mask"]}),
    "no-pattern": lambda header, tensors: header.pop("pattern"),
    "odd-pattern": lambda header, tensors: header.update(pattern="what"),
    "no-shapes": lambda header, tensors: header.pop("shapes"),
    "shapes-no-mapping": lambda header, tensors: header.update(shapes=[1, 2]),
    "other-format": lambda header, tensors: header.update(format="patch-mask-0"),
    "no-tile": lambda header, tensors: header.update(tile=None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "m.safetensors"
    save_masks(path, hybrid())
    rewrite(path, DAMAGE[damage])
    with pytest.raises(InputError, match="m.safetensors"):
        load_masks(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{"])
def test_foreign_metadata_under_our_key(tmp_path: Path, text: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors", metadata={"patch": text})
    with pytest.raises(InputError, match="not written by this software"):
        load_masks(tmp_path / "m.safetensors")


def masks_of(model: torch.nn.Module) -> MaskSet:
    return MaskSet({n: two_four(tuple(weight_matrix(m).shape), i) for i, (n, m) in enumerate(linears(model))}, "2:4")


def linears(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    return list(prunable_linears(model).items())


@pytest.mark.parametrize("family", ["qwen2", "opt", "gpt2"])
def test_masks_are_applied_and_nothing_else_changes(family: str, tiny_model: Callable) -> None:
    model, before = tiny_model(family), tiny_model(family).state_dict()
    masks = masks_of(model)
    apply_masks(model, masks)
    masked = 0
    for name, value in model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer in masks.masks and name.endswith(".weight"):
            mask = masks.masks[layer].T if family == "gpt2" else masks.masks[layer]
            expected = torch.where(mask, before[name], torch.zeros(()))
            masked += 1
        else:
            expected = before[name]
        assert torch.equal(value, expected), name
    assert masked == len(masks.masks) == {"qwen2": 14, "opt": 12, "gpt2": 8}[family]


def test_nan_weights_under_a_mask_become_zero(tiny_model: Callable) -> None:
    model = tiny_model()
    masks = masks_of(model)
    name, linear = linears(model)[0]
    linear.weight.data[~masks.masks[name]] = float("nan")
    apply_masks(model, masks)
    assert linear.weight.isfinite().all()


def test_masks_of_another_model_are_refused(tiny_model: Callable) -> None:
    masks = masks_of(tiny_model())
    with pytest.raises(InputError, match="another model: model.layers.0.self_attn.k_proj is .*its mask"):
        apply_masks(tiny_model("qwen2", num_attention_heads=2), masks)
    with pytest.raises(InputError, match="only in the model"):
        apply_masks(tiny_model("qwen2", num_hidden_layers=3), masks)
    with pytest.raises(InputError, match="only in the masks"):
        apply_masks(tiny_model("qwen2", num_hidden_layers=1), masks)
