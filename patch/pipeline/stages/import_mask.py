"""Import of an external mask, which is converted to this package's file format."""

from __future__ import annotations

from pathlib import Path

from patch.errors import InputError
from patch.files.io import read_json
from patch.masks.packed import MaskSet, check_masks, load_masks, save_masks
from patch.masks.published import read_published
from patch.models.loading import load_skeleton
from patch.pipeline.config.imports import HubMask
from patch.pipeline.runs.layout import spec_digest
from patch.pipeline.runs.specs import ImportSpec
from patch.pipeline.stages._common import measured, prepare_device


def run(spec: ImportSpec, *, model: Path, source: Path, mask: Path) -> None:
    """Read a mask in a published format or this package's format, check it against the model, and write it."""
    network = load_skeleton(model)
    fetched = isinstance(spec.source, HubMask)
    file = source / spec.source.file if fetched else source
    prepare_device("cpu")
    cost: dict[str, float] = {}
    with measured(cost, "cpu"):
        if file.suffix == ".safetensors":
            masks = _own(file, spec)
            check_masks(network, masks)
        else:
            masks = read_published(file, network, spec.pattern, spec.tile)
    origin = read_json(source / "receipt.json") if fetched else {"path": str(source)}
    masks.header = {
        "settings": spec.model_dump(mode="json"),
        "digest": spec_digest(spec),
        "cost": cost,
        "imported": origin | masks.header,
    }
    save_masks(mask, masks)
    print(f"{file}: {len(masks.masks)} layers, sparsity {masks.sparsity:.4f}, {masks.pattern}")


def _own(file: Path, spec: ImportSpec) -> MaskSet:
    masks = load_masks(file)
    if (masks.pattern, masks.tile) != (spec.pattern, spec.tile):
        raise InputError(
            f"{file}: pattern {masks.pattern}, tile {masks.tile}; the configuration says {spec.pattern}, {spec.tile}"
        )
    return masks
