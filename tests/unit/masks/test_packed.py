"""Tests of mask files: round trips and the refusal of damaged files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from patch.errors import InputError
from patch.files.tensors import load_tensors, save_tensors
from patch.masks.header import FORMAT
from patch.masks.nm import NM, nm_mask
from patch.masks.packed import MaskSet, apply_masks, load_masks, pack_bits, save_masks, take_mask
from patch.models.loading import prunable_linears, weight_matrix


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
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8 and packed.numel() == (rows * columns + 7) // 8
    # First weight in the highest bit, as in the published masks.
    assert int(packed[0]) >> 7 == int(mask[0, 0])
    assert packed.numpy().tobytes() == np.packbits(mask.numpy().flatten()).tobytes()
    assert torch.equal(take_mask({"a": packed}, "a", [rows, columns]), mask)


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
    with pytest.raises(InputError, match="not written by this version"):
        load_masks(path)
    with pytest.raises(InputError, match="m"):
        load_masks(tmp_path)


def rewrite(path: Path, change: Callable[[dict, dict], None]) -> None:
    """Change the header and the tensors of a mask file and update its checksum."""
    header, tensors = load_tensors(path, FORMAT, "mask")
    change(header, tensors)
    save_tensors(path, FORMAT, header, tensors)


DAMAGE: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "shape": (lambda h, t: h["shapes"].update(a=[8, 16]), "a.mask is missing or has the wrong size"),
    "shape-of-tiles": (lambda h, t: h["shapes"].update(a=[6, 16]), "does not fit a of 6x16"),
    "shape-zero": (lambda h, t: h["shapes"].update(a=[0, 12]), "`shapes.a.0`"),
    "shape-negative": (lambda h, t: h["shapes"].update(a=[-8, -12]), "`shapes.a.0`"),
    "shape-flat": (lambda h, t: h["shapes"].update(a=[96]), "`shapes.a`"),
    "shape-huge": (lambda h, t: h["shapes"].update(a=[2**30, 2**30]), "a.mask is missing or has the wrong size"),
    "shape-too-long": (lambda h, t: h["shapes"].update(a=[10**300, 12]), "`shapes.a.0`"),
    "shape-bool": (lambda h, t: h["shapes"].update(a=[True, 96]), "`shapes.a.0`"),
    "shape-float": (lambda h, t: h["shapes"].update(a=[8.0, 12]), "`shapes.a.0`"),
    "mask-gone": (lambda h, t: t.pop("a.mask"), "a.mask is missing"),
    "tiles-gone": (lambda h, t: t.pop("a.tiles"), "a.tiles is missing"),
    "mask-unknown": (lambda h, t: t.update({"b.mask": t["a.mask"].clone()}), "'b.mask' belongs to no layer"),
    "too-few-bits": (lambda h, t: t.update({"a.mask": t["a.mask"][:-1].clone()}), "a.mask is missing or has"),
    "bits-of-two": (
        lambda h, t: t.update({"a.mask": t["a.mask"].reshape(2, -1)}),
        "a.mask is missing or has the wrong",
    ),
    "bits-after-the-end": (lambda h, t: t["a.tiles"].bitwise_or_(1), "a.tiles has bits after its 6 weights"),
    "wrong-type": (lambda h, t: t.update({"a.mask": t["a.mask"].to(torch.int32)}), "a.mask is missing or has"),
    "flipped-bits": (lambda h, t: t.update({"a.mask": ~t["a.mask"]}), "break 2:4|marked dense"),
    "no-pattern": (lambda h, t: h.pop("pattern"), "`pattern`: Field required"),
    "odd-pattern": (lambda h, t: h.update(pattern="what"), "hybrid alone has tiles"),
    "pattern-of-zero": (lambda h, t: h.update(pattern="2:0", tile=None), "'2:0' is not N:M with 0 < N <= M"),
    "pattern-too-long": (lambda h, t: h.update(pattern="9" * 5000 + ":4", tile=None), "is not N:M with 0 < N <= M"),
    "pattern-and-newline": (lambda h, t: h.update(pattern="2:4\n", tile=None), "is not N:M with 0 < N <= M"),
    "newline-and-tile": (lambda h, t: h.update(pattern="2:4\n"), "hybrid alone has tiles"),
    "pattern-of-half-a-character": (lambda h, t: h.update(pattern="\ud800"), "hybrid alone has tiles"),
    "pattern-unknown": (lambda h, t: h.update(pattern="what", tile=None), "'what' is not N:M"),
    "no-shapes": (lambda h, t: h.pop("shapes"), "`shapes`: Field required"),
    "no-layers": (lambda h, t: h.update(shapes={}), "`shapes`"),
    "shapes-no-mapping": (lambda h, t: h.update(shapes=[1, 2]), "`shapes`"),
    "no-tile": (lambda h, t: h.update(tile=None), "hybrid alone has tiles"),
    "tile-zero": (lambda h, t: h.update(tile=0), "`tile`"),
    "tile-of-three": (lambda h, t: h.update(tile=3), "does not fit a of 8x12"),
    "tile-other": (lambda h, t: h.update(tile=2), "does not fit a of 8x12"),
    "sparsity": (lambda h, t: h.update(achieved_sparsity=0.25), "sparsity 0.333333, expected 0.25"),
    "sparsity-as-text": (lambda h, t: h.update(achieved_sparsity="0.5"), "`achieved_sparsity`"),
    "sparsity-over-one": (lambda h, t: h.update(achieved_sparsity=1.5), "`achieved_sparsity`"),
    "unknown-key": (lambda h, t: h.update(more=1), "`more`: Extra inputs"),
    "provenance-no-mapping": (lambda h, t: h.update(provenance=3), "`provenance`"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "m.safetensors"
    save_masks(path, hybrid())
    change, message = DAMAGE[damage]
    rewrite(path, change)
    with pytest.raises(InputError, match=message) as error:
        load_masks(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_one_changed_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_masks(path, MaskSet({"a": torch.ones(8, 8).bool()}, "unstructured"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="do not match its checksum"):
        load_masks(path)


def test_a_mask_that_no_file_can_describe_is_not_written(tmp_path: Path) -> None:
    for masks in (
        MaskSet({"a": torch.ones(1, 4).bool()}, "2:0"),
        MaskSet({"a": torch.ones(1, 4).bool()}, "4:4", {}, 4),
    ):
        with pytest.raises(InputError, match="is not N:M|hybrid alone has tiles"):
            save_masks(tmp_path / "m.safetensors", masks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "1e999"])
def test_foreign_metadata_under_our_key(tmp_path: Path, text: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors", metadata={"patch": text})
    with pytest.raises(InputError, match="not written by this version|not valid JSON"):
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
