"""Tests of published mask files: reading, writing and the refusal of invalid files."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from patch.errors import InputError
from patch.masks.nm import NM, nm_mask
from patch.masks.packed import MaskSet
from patch.masks.published_masks import read_published, write_published
from patch.masks.tile import expand_tiles
from patch.models.loading import prunable_linears, weight_matrix

FAMILIES = ["qwen2", "gpt2", "opt"]
TILE = 4
FIRST = "model.layers.0.self_attn.q_proj.weight"


def hybrid_mask(shape: tuple[int, int], tile: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a mask `[out, in]` that is made from its tile map, and the map."""
    generator = torch.Generator().manual_seed(seed)
    height, width = min(shape[0], tile), min(shape[1], tile)
    dense = torch.rand(shape[0] // height, shape[1] // width, generator=generator) < 0.3
    mask = nm_mask(torch.randn(shape, generator=generator), NM(2, 4))
    for row, column in dense.nonzero().tolist():
        mask[row * height : (row + 1) * height, column * width : (column + 1) * width] = True
    return mask, dense


def masks_of(model: nn.Module, pattern: str, tile: int = TILE) -> MaskSet:
    masks, tiles = {}, {}
    for seed, (name, linear) in enumerate(prunable_linears(model).items()):
        shape = tuple(weight_matrix(linear).shape)
        if pattern == "hybrid":
            masks[name], tiles[name] = hybrid_mask(shape, tile, seed)
        else:
            generator = torch.Generator().manual_seed(seed)
            score = torch.randn(shape, generator=generator)
            masks[name] = (
                score > 0.2 if pattern == "unstructured" else nm_mask(score, NM(*map(int, pattern.split(":"))))
            )
    return MaskSet(masks, pattern, tiles, tile if pattern == "hybrid" else None)


def stored(model: nn.Module, masks: MaskSet) -> dict[str, np.ndarray]:
    """Return masks by state-dict name in the layout of the stored weight."""
    weights = model.state_dict()
    result = {}
    for name, mask in masks.masks.items():
        key = f"{name}.weight"
        result[key] = (mask.T if isinstance(model.get_submodule(name), Conv1D) else mask).numpy()
        assert result[key].shape == weights[key].shape
    return result


def patch_entries(model: nn.Module, masks: MaskSet, meta: Any = None) -> dict[str, np.ndarray]:
    entries: dict[str, np.ndarray] = {"__meta__": np.array(json.dumps({"tile": masks.tile} if meta is None else meta))}
    for key, mask in stored(model, masks).items():
        entries[key] = np.packbits(mask.flatten())
        entries[f"{key}.__shape__"] = np.array(mask.shape)
    return entries


def maskllm_entries(model: nn.Module, masks: MaskSet, ending: str = ".weight.mask") -> dict[str, np.ndarray]:
    return {
        key.removesuffix(".weight") + ending: np.packbits(mask.flatten()) for key, mask in stored(model, masks).items()
    }


def save(path: Path, entries: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(path, **entries)
    return path


def check_equal(found: MaskSet, wanted: MaskSet) -> None:
    assert list(found.masks) == list(wanted.masks)
    for name, mask in wanted.masks.items():
        assert torch.equal(found.masks[name], mask), name
        assert found.masks[name].dtype == torch.bool
    assert found.tiles.keys() == wanted.tiles.keys()
    assert all(torch.equal(found.tiles[name], tiles) for name, tiles in wanted.tiles.items())
    assert (found.pattern, found.tile) == (wanted.pattern, wanted.tile)


PATTERNS = ["2:4", "1:4", "5:8", "unstructured", "hybrid"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patch_files_are_read(family: str, pattern: str, tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model(family)
    masks = masks_of(model, pattern)
    path = save(tmp_path / "mask.npz", patch_entries(model, masks, {"tile": TILE, "method": "patch"}))
    found = read_published(path, model, pattern)
    check_equal(found, masks)
    assert found.header == {"format": "patch", "meta": {"tile": TILE, "method": "patch"}}
    assert found.sparsity == masks.sparsity


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ending", [".weight.mask", ".mask"])
@pytest.mark.parametrize("pattern", ["2:4", "hybrid"])
def test_maskllm_files_are_read(family: str, ending: str, pattern: str, tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model(family)
    masks = masks_of(model, pattern)
    path = save(tmp_path / "mask_compressed.npz", maskllm_entries(model, masks, ending))
    found = read_published(path, model, pattern, tile=TILE)
    check_equal(found, masks)
    assert found.header == {"format": "maskllm", "meta": {}}


def test_square_weights_of_gpt2_are_not_taken_the_other_way_round(tiny_model: Callable, tmp_path: Path) -> None:
    model, name = tiny_model("gpt2"), "transformer.h.0.attn.c_proj"
    masks = masks_of(model, "unstructured")
    masks.masks[name] = torch.zeros(24, 24, dtype=torch.bool)
    masks.masks[name][3] = True  # all that goes to output 3, which stands in column 3 of the stored weight
    entries = patch_entries(model, masks)
    bits = np.unpackbits(entries[f"{name}.weight"]).reshape(24, 24)
    assert bits[:, 3].all() and bits.sum() == 24
    assert read_published(save(tmp_path / "m.npz", entries), model, "unstructured").masks[name][3].all()


DESCRIPTIONS: dict[str, Callable[[str], np.ndarray]] = {
    "string": np.array,
    "string-in-a-list": lambda text: np.array([text]),
    "bytes": lambda text: np.frombuffer(text.encode(), np.uint8),
    "byte-string": lambda text: np.array(text.encode()),
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_descriptions_are_read_in_every_form(kind: str, tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model()
    entries = patch_entries(model, masks_of(model, "2:4"))
    entries["__meta__"] = DESCRIPTIONS[kind](
        json.dumps({"model": "Zoë", "tile": 4}, ensure_ascii=kind == "byte-string")
    )
    found = read_published(save(tmp_path / "m.npz", entries), model, "2:4")
    assert found.header["meta"] == {"model": "Zoë", "tile": 4}


def test_patch_files_need_no_description_and_any_integer_is_a_shape(tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model()
    masks = masks_of(model, "hybrid")
    entries = patch_entries(model, masks)
    del entries["__meta__"]
    entries |= {key: array.astype(np.uint16) for key, array in entries.items() if key.endswith("__shape__")}
    check_equal(read_published(save(tmp_path / "m.npz", entries), model, "hybrid", tile=TILE), masks)


def test_a_given_tile_goes_before_that_of_the_description(tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    masks = masks_of(model, "hybrid", tile=8)
    path = save(tmp_path / "m.npz", patch_entries(model, masks, {"tile": 8}))
    check_equal(read_published(path, model, "hybrid"), masks)
    finer = {name: expand_tiles(tiles, [2 * size for size in tiles.shape]) for name, tiles in masks.tiles.items()}
    check_equal(read_published(path, model, "hybrid", tile=4), MaskSet(masks.masks, "hybrid", finer, 4))
    path = save(path, patch_entries(model, masks_of(model, "hybrid", tile=4), {"tile": 4}))
    assert "neither 2:4 nor dense with tiles of 8" in refused(path, model, "hybrid", tile=8)


def test_a_model_without_weights_is_enough(tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    masks = masks_of(model, "2:4")
    path = save(tmp_path / "m.npz", patch_entries(model, masks))
    check_equal(read_published(path, model.to("meta"), "2:4"), masks)


# Writing.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_round_trip(family: str, pattern: str, tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model(family)
    masks = masks_of(model, pattern)
    path = tmp_path / "a name without an ending"
    write_published(path, model, masks, {"method": "patch", "tile": "a foreign value"})
    found = read_published(path, model, pattern)
    check_equal(found, masks)
    own = {"format": "patch", "pattern": pattern, "tile": masks.tile, "achieved_sparsity": masks.sparsity}
    assert found.header == {"format": "patch", "meta": {"method": "patch", **own}}
    assert list(tmp_path.iterdir()) == [path]
    write_published(tmp_path / "again.npz", model, found, found.header["meta"])
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_what_the_authors_read(family: str, tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model(family)
    masks = masks_of(model, "hybrid")
    write_published(tmp_path / "mask.npz", model, masks)
    wanted = patch_entries(model, masks)
    with np.load(tmp_path / "mask.npz", allow_pickle=False) as file:
        assert set(file.files) == set(wanted)
        for key in file.files:
            if key == "__meta__":
                assert json.loads(file[key].tobytes())["tile"] == TILE
            else:
                assert np.array_equal(file[key], wanted[key]), key
                assert file[key].dtype.kind == wanted[key].dtype.kind
    with zipfile.ZipFile(tmp_path / "mask.npz") as file:
        assert file.testzip() is None
        assert {entry.compress_type for entry in file.infolist()} == {zipfile.ZIP_DEFLATED}


class Tiny(nn.Module):
    """Model with two linear layers of both orientations in a block."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        block = nn.Module()
        block.plain, block.turned = nn.Linear(columns, rows), Conv1D(rows, columns)
        self.blocks = nn.ModuleList([block])


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([4, 8, 12]), st.integers(0, 10_000))
def test_any_tiles_round_trip(tmp_path: Path, down: int, across: int, tile: int, seed: int) -> None:
    model = Tiny(tile * down, tile * across)
    made = [hybrid_mask((tile * down, tile * across), tile, seed + i) for i in range(2)]
    names = list(prunable_linears(model))
    masks = MaskSet(
        {name: mask for name, (mask, _) in zip(names, made, strict=True)},
        "hybrid",
        {name: tiles for name, (_, tiles) in zip(names, made, strict=True)},
        tile,
    )
    write_published(tmp_path / "m.npz", model, masks)
    check_equal(read_published(tmp_path / "m.npz", model, "hybrid"), masks)


@given(st.integers(1, 9), st.integers(1, 17), st.floats(0, 1), st.integers(0, 10_000))
def test_any_unstructured_mask_round_trips(tmp_path: Path, rows: int, columns: int, kept: float, seed: int) -> None:
    model, generator = Tiny(rows, columns), torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(rows, columns, generator=generator) < kept for name in prunable_linears(model)}
    write_published(tmp_path / "m.npz", model, MaskSet(masks, "unstructured"))
    check_equal(read_published(tmp_path / "m.npz", model, "unstructured"), MaskSet(masks, "unstructured"))


def test_tiles_larger_than_a_layer_end_with_it(tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    masks = masks_of(model, "hybrid", tile=120)
    assert masks.tiles["transformer.h.0.attn.c_proj"].shape == (1, 1)
    write_published(tmp_path / "m.npz", model, masks)
    check_equal(read_published(tmp_path / "m.npz", model, "hybrid"), masks)


def test_what_cannot_be_written_leaves_nothing(tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model()
    path = tmp_path / "m.npz"
    with pytest.raises(InputError, match="another model"):
        write_published(path, model, masks_of(tiny_model("opt"), "2:4"))
    broken = masks_of(model, "2:4")
    broken.masks[FIRST.removesuffix(".weight")][1, 4:8] = True
    with pytest.raises(InputError, match="q_proj: row 1, weights 4 to 7 break 2:4"):
        write_published(path, model, broken)
    for value in (float("nan"), {1, 2}, "x" * (1 << 24)):
        with pytest.raises(InputError, match=f"`meta` of mask {path}"):
            write_published(path, model, masks_of(model, "2:4"), {"value": value})
    assert list(tmp_path.iterdir()) == []


# Refusal of invalid files.


def refused(path: Path, model: nn.Module, pattern: str = "2:4", **options: Any) -> str:
    with pytest.raises(InputError) as error:
        read_published(path, model, pattern, **options)
    return str(error.value)


def test_missing_files_folders_and_other_files(tiny_model: Callable, tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "m.npz"
    assert refused(path, model) == f"mask {path}: no such file"
    assert f"mask {tmp_path}: " in refused(tmp_path, model)
    for content in (b"", b"PK\x03\x04 and more", b"\x93NUMPY\x01\x00 and more", b"{}" * 500):
        path.write_bytes(content)
        assert f"mask {path}: truncated, damaged, pickled or not an npz file" in refused(path, model)
    with zipfile.ZipFile(path, "w"):
        pass
    assert "its keys (such as None) are of neither published format" in refused(path, model)


def test_truncated_files(tiny_model: Callable, tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "m.npz"
    save(path, patch_entries(model, masks_of(model, "2:4")))
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 131), len(whole) - 22, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert f"mask {path}: truncated, damaged, pickled or not an npz file" in refused(path, model)


def test_no_damage_is_taken_for_anything_else(tiny_model: Callable, tmp_path: Path) -> None:
    """A file with a changed byte is refused or gives the same masks."""
    model, path = tiny_model("qwen2", num_hidden_layers=1), tmp_path / "m.npz"
    masks = masks_of(model, "2:4")
    save(path, patch_entries(model, masks))
    whole, random = path.read_bytes(), np.random.default_rng(0)
    count = 0
    for place in random.integers(0, len(whole), 300).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            check_equal(read_published(path, model, "2:4"), masks)
        except InputError as error:
            assert str(path) in str(error)
            count += 1
    assert count > 150


PICKLED = "truncated, damaged, pickled or not an npz file (Object arrays cannot be loaded"


@pytest.mark.parametrize("key", [FIRST, f"{FIRST}.__shape__", "__meta__"])
def test_pickled_objects_are_not_loaded(key: str, tiny_model: Callable, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    model = tiny_model()
    entries = patch_entries(model, masks_of(model, "2:4"))
    entries[key] = np.array([Trap()], dtype=object)
    path = tmp_path / "m.npz"
    np.savez(path, allow_pickle=True, **entries)
    assert f"mask {path}: {key}: {PICKLED}" in refused(path, model)
    with np.load(path, allow_pickle=True) as file:
        file[key]  # a loader that unpickles runs the code
    assert (tmp_path / "ran").exists()


def test_objects_within_a_record_are_not_loaded(tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model()
    entries = maskllm_entries(model, masks_of(model, "2:4"))
    entries[f"{FIRST}.mask"] = np.zeros(1, [("a", np.uint8), ("b", object)])
    assert f"{FIRST}.mask: {PICKLED}" in refused(save(tmp_path / "m.npz", entries), model)


Change = Callable[[dict[str, np.ndarray]], Any]


def change_patch(change: Change, model: nn.Module, path: Path, pattern: str = "2:4") -> Path:
    entries = patch_entries(model, masks_of(model, pattern))
    change(entries)
    return save(path, entries)


ODD: dict[str, tuple[Change, str]] = {
    "other-layer": (
        lambda e: e.update({"lm_head.weight": e[FIRST]}),
        f"lm_head.weight is no prunable layer of the model (one is {FIRST})",
    ),
    "other-shape": (
        lambda e: e.update({"lm_head.weight.__shape__": np.array([1, 8])}),
        "lm_head.weight.__shape__ is no prunable layer",
    ),
    "bias": (
        lambda e: e.update({"model.layers.0.self_attn.q_proj.bias": e[FIRST]}),
        "q_proj.bias is no prunable layer",
    ),
    "layer-gone": (lambda e: e.pop(FIRST), f"it lacks {FIRST};"),
    "shape-gone": (lambda e: e.pop(f"{FIRST}.__shape__"), f"it lacks {FIRST}.__shape__;"),
    "shape-of-another": (
        lambda e: e.update({f"{FIRST}.__shape__": np.array([12, 48])}),
        f"{FIRST}.__shape__ is int64 [12, 48], but the model's weight is [24, 24]",
    ),
    "shape-of-floats": (
        lambda e: e.update({f"{FIRST}.__shape__": np.array([24.0, 24.0])}),
        f"{FIRST}.__shape__ is float64 [24.0, 24.0], but",
    ),
    "shape-in-a-list": (
        lambda e: e.update({f"{FIRST}.__shape__": np.array([[24, 24]])}),
        f"{FIRST}.__shape__ is int64 [[24, 24]], but",
    ),
    "too-few-bits": (
        lambda e: e.update({FIRST: e[FIRST][:-1]}),
        f"{FIRST} has shape [71]; a mask of [24, 24] has [72]",
    ),
    "too-many-bits": (lambda e: e.update({FIRST: np.zeros(73, np.uint8)}), f"{FIRST} has shape [73]; a mask of"),
    "no-bits": (lambda e: e.update({FIRST: np.zeros(0, np.uint8)}), f"{FIRST} has shape [0]; a mask of"),
    "two-dimensions": (lambda e: e.update({FIRST: e[FIRST].reshape(8, 9)}), f"{FIRST} has shape [8, 9]; a mask of"),
    "bool": (lambda e: e.update({FIRST: np.unpackbits(e[FIRST]).astype(bool)}), f"{FIRST} is bool; bits packed"),
    "int8": (lambda e: e.update({FIRST: e[FIRST].view(np.int8)}), f"{FIRST} is int8; bits packed into uint8"),
    "meta-not-json": (lambda e: e.update({"__meta__": np.array("{'a': 1}")}), "__meta__: not valid JSON"),
    "meta-not-utf8": (lambda e: e.update({"__meta__": np.array([255, 254, 1], np.uint8)}), "__meta__: not valid JSON"),
    "meta-of-infinity": (lambda e: e.update({"__meta__": np.array('{"a": Infinity}')}), "__meta__: not valid JSON"),
    "meta-key-twice": (lambda e: e.update({"__meta__": np.array('{"tile": 4, "tile": 8}')}), "the key 'tile' is there"),
    "meta-too-deep": (lambda e: e.update({"__meta__": np.array("[" * 100_000)}), "__meta__: not valid JSON"),
    "meta-a-list": (lambda e: e.update({"__meta__": np.array("[1]")}), "__meta__: list '[1]'; a JSON object"),
    "meta-numbers": (lambda e: e.update({"__meta__": np.arange(3)}), "__meta__: int64 of shape [3]; a JSON text"),
    "meta-texts": (lambda e: e.update({"__meta__": np.array(["{}", "{}"])}), "__meta__: <U2 of shape [2]; a JSON text"),
    "meta-large": (lambda e: e.update({"__meta__": np.zeros(1 << 25, np.uint8)}), "__meta__ unpacks to 33554560 bytes"),
    "breaks-pattern": (
        lambda e: e.update({FIRST: np.full(72, 0b11110000, np.uint8)}),
        "mask of model.layers.0.self_attn.q_proj: row 0, weights 0 to 3 break 2:4",
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_patch_files_are_refused(odd: str, tiny_model: Callable, tmp_path: Path) -> None:
    change, message = ODD[odd]
    model = tiny_model()
    path = change_patch(change, model, tmp_path / "m.npz")
    said = refused(path, model)
    assert said.startswith(f"mask {path}: ") and message in said


LAYER = f"{FIRST}.mask"
ODD_MASKLLM: dict[str, tuple[Change, str]] = {
    "other-layer": (lambda e: e.update({"lm_head.weight.mask": e[LAYER]}), "lm_head.weight.mask is no prunable layer"),
    "no-mask": (lambda e: e.update({"other": e[LAYER]}), "other is no prunable layer"),
    "gone": (lambda e: e.pop(LAYER), f"it lacks {LAYER};"),
    "two-names": (
        lambda e: e.update({LAYER.replace(".weight", ""): e[LAYER]}),
        f"model.layers.0.self_attn.q_proj.mask and {LAYER} are both the mask of",
    ),
    "bits": (lambda e: e.update({LAYER: e[LAYER][1:]}), f"{LAYER} has shape [71]; a mask of [24, 24] has [72]"),
    "type": (lambda e: e.update({LAYER: e[LAYER].astype(float)}), f"{LAYER} is float64; bits packed"),
}


@pytest.mark.parametrize("odd", ODD_MASKLLM)
def test_odd_maskllm_files_are_refused(odd: str, tiny_model: Callable, tmp_path: Path) -> None:
    change, message = ODD_MASKLLM[odd]
    model = tiny_model()
    entries = maskllm_entries(model, masks_of(model, "2:4"))
    change(entries)
    path = save(tmp_path / "m.npz", entries)
    said = refused(path, model)
    assert said.startswith(f"mask {path}: ") and message in said


def test_files_of_neither_format_and_of_other_models(tiny_model: Callable, tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "m.npz"
    save(path, {FIRST: np.zeros(72, np.uint8)})
    assert f"its keys (such as {FIRST}) are of neither published format" in refused(path, model)
    save(path, patch_entries(model, masks_of(model, "2:4")))
    assert "model.layers.0.self_attn.q_proj.weight is no prunable layer" in refused(path, tiny_model("gpt2"))
    assert "it lacks model.layers.2." in refused(path, tiny_model("qwen2", num_hidden_layers=3))
    assert "k_proj.weight.__shape__ is int64 [12, 24]" in refused(path, tiny_model("qwen2", num_attention_heads=2))


@pytest.mark.parametrize("pattern", ["", "2-4", "4:2", "0:4", "2:4:8", "-2:4", "dense"])
def test_odd_patterns_are_refused(pattern: str, tiny_model: Callable, tmp_path: Path) -> None:
    said = refused(tmp_path / "m.npz", tiny_model(), pattern)
    assert said == f"pattern {pattern!r} is not N:M with 0 < N <= M, such as 2:4"


def test_groups_and_tiles_that_do_not_fit_are_refused(tiny_model: Callable, tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "m.npz"
    save(path, patch_entries(model, masks_of(model, "2:4"), {}))
    assert f"{FIRST}: 7 must divide its 24 input features for 2:7" in refused(path, model, "2:7")
    said = refused(path, model, "hybrid")
    assert said.startswith(f"mask {path}: __meta__: `tile` is None; a hybrid mask needs")
    for tile in (0, -4, 4.0, True):
        assert f"`tile` is {tile!r}; a hybrid mask needs" in refused(path, model, "hybrid", tile=tile)
    for tile in (5, 6, 16):
        assert f"{FIRST}: tiles of {tile} do not fit its [24, 24]" in refused(path, model, "hybrid", tile=tile)
    save(path, patch_entries(model, masks_of(model, "2:4"), {"tile": "4"}))
    assert "__meta__: `tile` is '4'; a hybrid" in refused(path, model, "hybrid")


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_tile_that_is_neither_dense_nor_two_four_is_named(family: str, tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model(family)
    masks = masks_of(model, "hybrid")
    name = list(masks.masks)[1]
    masks.masks[name][4:8, 8:12] = True
    masks.masks[name][5, 9] = False
    path = save(tmp_path / "m.npz", patch_entries(model, masks))
    wanted = f"mask {path}: {name}.weight: tile [1, 2], rows 4 to 7 and columns 8 to 11, is neither 2:4 nor dense"
    assert refused(path, model, "hybrid").startswith(wanted)


def npy(shape: str, data: bytes, descr: str = "'|u1'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def rezip(path: Path, model: nn.Module, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a valid file with ``content`` as the entry of the first layer."""
    entries = patch_entries(model, masks_of(model, "2:4"))
    with zipfile.ZipFile(path, "w", compression) as file:
        for key, array in entries.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            file.writestr(f"{key}.npy", content if key == FIRST else buffer.getvalue())
    return path


def peak_memory(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_are_not_unpacked(tiny_model: Callable, tmp_path: Path) -> None:
    model, size = tiny_model(), 64 << 20
    bomb = npy(f"({size},)", bytes(size))
    path = rezip(tmp_path / "m.npz", model, bomb)
    assert path.stat().st_size < size // 200
    messages: list[str] = []
    assert peak_memory(lambda: messages.append(refused(path, model))) < 4 << 20
    assert f"{FIRST} unpacks to {len(bomb)} bytes, but 72 belong there" in messages[0]

    # The directory declares a small entry, so no more than that is unpacked.
    small = len(npy("(72,)", bytes(72)))
    path.write_bytes(path.read_bytes().replace(len(bomb).to_bytes(4, "little"), small.to_bytes(4, "little")))
    messages.clear()
    assert peak_memory(lambda: messages.append(refused(path, model))) < 4 << 20
    assert f"mask {path}: {FIRST}: " in messages[0]

    # The array declares a size that no memory holds.
    rezip(path, model, npy(f"({1 << 50},)", bytes(72)))
    assert f"mask {path}: {FIRST}: truncated, damaged" in refused(path, model)
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        rezip(path, model, npy("(72,)", bytes(72)), compression)
        assert f"compressed by method {compression}" in refused(path, model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated, damaged"),
        (b"not an array, but long enough", "truncated, damaged"),
        (npy("(72,)", b"")[:40], "truncated, damaged"),
        (npy("(72,)", bytes(71)), "truncated, damaged"),
        (npy("(72,)", bytes(73)), "more data than uint8 of shape [72] needs"),
        (npy("(-8, -9)", bytes(72)), "truncated, damaged"),
        (npy("(72,)", bytes(72), "'what'"), "truncated, damaged"),
        (npy("72", bytes(72)), "truncated, damaged"),
        (b"\x93NUMPY\x03\x00" + npy("(72,)", bytes(72))[8:], "truncated, damaged"),
        (b"\x93NUMPY\x09\x00" + npy("(72,)", bytes(72))[8:], "truncated, damaged"),
        (b"\x93NUMPY\x01\x00\x01\x00(", "truncated, damaged"),
    ],
)
def test_damaged_arrays_are_refused(content: bytes, message: str, tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model()
    path = rezip(tmp_path / "m.npz", model, content)
    said = refused(path, model)
    assert said.startswith(f"mask {path}: {FIRST}: ") and message in said


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_key_that_stands_twice_is_refused(tiny_model: Callable, tmp_path: Path) -> None:
    model = tiny_model()
    path = rezip(tmp_path / "m.npz", model, npy("(72,)", bytes(72)))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(f"{FIRST}.npy", npy("(72,)", bytes(72)))
    assert "has 30 entries, but 29 keys" in refused(path, model)


def test_masks_stay_packed(tmp_path: Path) -> None:
    """Masks in memory take one bit a weight, plus one unpacked layer."""
    model, layers, width = nn.Module(), 12, 512
    model.blocks = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(layers)])
    mask = nm_mask(torch.rand(width, width), NM(2, 4))
    write_published(tmp_path / "m.npz", model, MaskSet(dict.fromkeys(prunable_linears(model), mask), "2:4"))
    whole = layers * width * width
    assert peak_memory(lambda: read_published(tmp_path / "m.npz", model, "2:4")) < whole / 2
