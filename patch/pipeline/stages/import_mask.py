"""Import of an external mask, which is converted to this package's file format."""

from __future__ import annotations

from pathlib import Path

from patch.errors import InputError
from patch.files.io import read_json
from patch.masks.packed import MaskSet, check_masks, load_masks, save_masks
from patch.masks.published_masks import read_published
from patch.models.loading import load_skeleton
from patch.pipeline.config.imports import HubMask
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import ImportSettings
from patch.pipeline.stages._common import measured, prepare_device


def run(settings: ImportSettings, *, model: Path, source: Path, mask: Path) -> None:
    """Read a mask in a published format or this package's format, check it against the model, and write it."""
    network = load_skeleton(model)
    fetched = isinstance(settings.source, HubMask)
    file = source / settings.source.file if fetched else source
    prepare_device("cpu")
    cost: dict[str, float] = {}
    with measured(cost, "cpu"):
        if file.suffix == ".safetensors":
            masks = _own(file, settings)
            check_masks(network, masks)
        else:
            masks = read_published(file, network, settings.pattern, settings.tile)
    origin = read_json(source / "receipt.json") if fetched else {"path": str(source)}
    masks.header = {
        "settings": settings.model_dump(mode="json"),
        "digest": settings_digest(settings),
        "cost": cost,
        "imported": origin | masks.header,
    }
    save_masks(mask, masks)
    print(f"{file}: {len(masks.masks)} layers, sparsity {masks.sparsity:.4f}, {masks.pattern}")


def _own(file: Path, settings: ImportSettings) -> MaskSet:
    masks = load_masks(file)
    if (masks.pattern, masks.tile) != (settings.pattern, settings.tile):
        raise InputError(
            f"{file}: pattern {masks.pattern}, tile {masks.tile}; "
            f"the configuration has {settings.pattern}, {settings.tile}"
        )
    return masks
