"""Mask files in the formats in which PATCH (`mask.npz`) and MaskLLM (`mask_compressed.npz`) publish them on the hub.

Both hold `np.packbits` of a layer's flattened mask, 1 = keep, in the layout of the stored weight, which in GPT-2 is
`[in, out]`. PATCH (`mohammad-mozaffari/<model>-PATCH-45Sparse`): keys `<weight>` and `<weight>.__shape__`, and a JSON
text `__meta__`. MaskLLM (`Vinnnf/<model>-MaskLLM-C4`): keys `<weight>.mask` or `<layer>.mask` alone. Tiles are not
stored: a tile that breaks 2:4 is dense.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.files.io import atomic_file, parse_json
from patch.files.npz import Archive
from patch.masks.nm import NM, obeys
from patch.masks.packed import MaskSet, PackedMasks, check_masks
from patch.masks.pattern import group_of
from patch.masks.tile import by_tile, tile_shape
from patch.models.loading import is_transposed, prunable_linears

META, SHAPE = "__meta__", ".__shape__"
# The suffixes of a layer's name in the key of its mask, by format.
ENDINGS = {"patch": (".weight",), "maskllm": (".weight.mask", ".mask")}
# Largest description that is read, in bytes, unpacked.
_MOST_META = 1 << 24


def read_published(path: Path | str, model: nn.Module, pattern: str, tile: int | None = None) -> MaskSet:
    """Read and verify the masks of ``model`` in either format, which the keys distinguish.

    Args:
        path: an npz file; nothing in it is unpickled, or unpacked to more than its layer needs.
        model: gives the layers, their shapes and orientation; its weights are not read.
        pattern: `N:M`, `unstructured` or `hybrid`.
        tile: side of a tile, for `hybrid`; None for the one in the file's description.

    Returns:
        `[out, in]` bool masks, kept as bits. The header has the `format`, `patch` or `maskllm`, and the file's `meta`.

    Raises:
        InputError: the file is missing, damaged, of another model, or its masks break ``pattern``.
    """
    (_, group), linears = group_of(pattern), prunable_linears(model)
    with Archive(path, f"mask {path}") as archive:
        kind, keys = _layers(archive, linears)
        meta = _meta(archive) if META in archive.keys else {}
        tile = _tile(archive.where, tile, meta) if pattern == "hybrid" else None
        masks, tiles = PackedMasks(), {}
        for name, linear in linears.items():
            if kind == "patch":
                _check_shape(archive, keys[name] + SHAPE, linear.weight.shape)
            mask, where = _mask(archive, keys[name], linear), f"{archive.where}: {keys[name]}"
            if mask.shape[1] % group:
                raise InputError(f"{where}: {group} must divide its {mask.shape[1]} input features for {pattern}")
            if tile:
                tiles[name] = _dense_tiles(where, mask, tile)
            masks[name] = mask
    result = MaskSet(masks, pattern, tiles, tile, {"format": kind, "meta": meta})
    try:
        result.verify()
    except InputError as error:
        raise InputError(f"{archive.where}: {error}") from None
    return result


def write_published(path: Path | str, model: nn.Module, masks: MaskSet, meta: Mapping[str, Any] = {}) -> None:
    """Verify and write the masks of ``model`` as PATCH publishes them, atomically; equal masks give equal bytes.

    Args:
        path: path to write, usually `mask.npz`.
        meta: further entries of the file's description, which cannot replace `format`, `pattern`, `tile` and
            `achieved_sparsity`.

    Raises:
        InputError: the masks are of another model or break their pattern, or ``meta`` is not JSON.
    """
    linears = check_masks(model, masks)
    masks.verify()
    assert masks.pattern != "hybrid" or masks.tile is not None
    own = {"format": "patch", "pattern": masks.pattern, "tile": masks.tile, "achieved_sparsity": masks.sparsity}
    try:
        description = json.dumps({**meta, **own}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"`meta` of mask {path}: {error}; give what JSON can hold") from None
    if len(description) > _MOST_META:
        raise InputError(f"`meta` of mask {path}: {len(description)} bytes; at most {_MOST_META} are read again")
    # Entry by entry, since np.savez would hold all masks of the model at once.
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        _add(file, META, np.frombuffer(description, np.uint8))
        for name, linear in linears.items():
            mask = masks.masks[name]
            if masks.pattern == "hybrid":
                found = _dense_tiles(f"mask of {name}", mask, masks.tile)
                assert torch.equal(found, masks.tiles[name].cpu()), f"{name}: its tiles are not those of its mask"
            stored = (mask.T if is_transposed(linear) else mask).cpu().numpy()
            _add(file, f"{name}.weight", np.packbits(stored.flatten()))
            _add(file, f"{name}.weight{SHAPE}", np.array(stored.shape, np.int64))


def _add(file: zipfile.ZipFile, key: str, array: np.ndarray) -> None:
    with file.open(f"{key}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)


def _layers(archive: Archive, linears: Mapping[str, nn.Module]) -> tuple[str, dict[str, str]]:
    """Return the file's format, and the key of each prunable layer's mask; refuse a file with other layers."""
    shapes = [key for key in archive.keys if key.endswith(SHAPE)]
    bits = [key for key in archive.keys if key != META and not key.endswith(SHAPE)]
    kind = "patch" if shapes or META in archive.keys else "maskllm"
    if kind == "maskllm" and not any(key.endswith(".mask") for key in bits):
        raise InputError(
            f"{archive.where}: its keys (such as {next(iter(bits), None)}) are of neither published format: "
            f"<weight>, <weight>{SHAPE} and {META} (PATCH) or <weight>.mask (MaskLLM)"
        )
    keys = _by_layer(archive.where, bits, linears, ENDINGS[kind])
    if kind == "patch":
        _by_layer(archive.where, shapes, linears, tuple(ending + SHAPE for ending in ENDINGS[kind]))
    return kind, keys


def _by_layer(
    where: str, keys: list[str], linears: Mapping[str, nn.Module], endings: tuple[str, ...]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in keys:
        ending = next((ending for ending in endings if key.endswith(ending)), "")
        layer = key.removesuffix(ending)
        if not ending or layer not in linears:
            raise InputError(
                f"{where}: {key} is no prunable layer of the model (one is {next(iter(linears))}{endings[0]})"
            )
        if layer in found:
            raise InputError(f"{where}: {key} and {found[layer]} are both the mask of {layer}; leave one")
        found[layer] = key
    missing = next((name for name in linears if name not in found), None)
    if missing is not None:
        raise InputError(f"{where}: it lacks {missing}{endings[0]}; each prunable layer of the model needs one")
    return found


def _meta(archive: Archive) -> dict[str, Any]:
    where, array = f"{archive.where}: {META}", archive.load(META, _MOST_META)
    if array.dtype != np.uint8 and (array.dtype.kind not in "US" or array.size != 1):
        raise InputError(f"{where}: {array.dtype} of shape {list(array.shape)}; a JSON text or its bytes belong there")
    value = parse_json(array.tobytes() if array.dtype == np.uint8 else array.item(), where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: {type(value).__name__} {str(value)[:40]!r}; a JSON object belongs there")
    return value


def _tile(where: str, tile: int | None, meta: Mapping[str, Any]) -> int:
    found, value = ("`tile`", tile) if tile is not None else (f"{META}: `tile`", meta.get("tile"))
    if type(value) is not int or value < 1:
        raise InputError(
            f"{where}: {found} is {value!r}; a hybrid mask needs the side of its tiles, such as 128; give it as `tile`"
        )
    return value


def _check_shape(archive: Archive, key: str, shape: torch.Size) -> None:
    found = archive.load(key, 64 * len(shape))
    if found.dtype.kind not in "iu" or found.ndim != 1 or found.tolist() != list(shape):
        value = f"{found.dtype} {str(found.tolist())[:80]}"
        raise InputError(f"{archive.where}: {key} is {value}, but the model's weight is {list(shape)}")


def _mask(archive: Archive, key: str, linear: nn.Module) -> Tensor:
    """Return the `[out, in]` bool mask of a layer."""
    shape = linear.weight.shape
    size = -(-shape.numel() // 8)
    bits = archive.load(key, size)
    if bits.dtype != np.uint8:
        raise InputError(f"{archive.where}: {key} is {bits.dtype}; bits packed into uint8 belong there")
    if bits.shape != (size,):
        raise InputError(f"{archive.where}: {key} has shape {list(bits.shape)}; a mask of {list(shape)} has [{size}]")
    stored = torch.from_numpy(np.unpackbits(bits, count=shape.numel()).astype(bool)).reshape(shape)
    return stored.T if is_transposed(linear) else stored


def _dense_tiles(where: str, mask: Tensor, tile: int) -> Tensor:
    """Return the tiles that break 2:4, whose weights must all be kept: `[tiles along out, tiles along in]` bool."""
    (rows, columns), (height, width) = mask.shape, tile_shape(mask.shape, tile)
    if rows % height or columns % width or width % 4:
        raise InputError(
            f"{where}: tiles of {tile} do not fit its [{rows}, {columns}]; they must divide it, and 4 their width"
        )
    obeying = obeys(mask, NM(2, 4)).reshape(rows // height, height, columns // width, width // 4).all(dim=(1, 3))
    odd = ~(obeying | by_tile(mask, tile).all(dim=(1, 3)))
    if odd.any():
        row, column = odd.nonzero()[0].tolist()
        raise InputError(
            f"{where}: tile [{row}, {column}], rows {row * height} to {(row + 1) * height - 1} and columns "
            f"{column * width} to {(column + 1) * width - 1}, is neither 2:4 nor dense with tiles of {tile}"
        )
    return ~obeying
