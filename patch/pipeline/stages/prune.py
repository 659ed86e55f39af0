"""Stages that make masks without learning: layer statistics, one-shot pruning with updated weights, and imports."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from patch.calibration.input_statistics import InputStatistics, block_files, save_statistics
from patch.calibration.walk import walk_blocks
from patch.data.sequences import load_sequences
from patch.errors import InputError
from patch.files.io import atomic_directory, read_json
from patch.masks.nm import parse_pattern
from patch.masks.packed import MaskSet, check_masks, load_masks, save_masks
from patch.masks.published_masks import read_published
from patch.models.loading import load_model, load_skeleton, prunable_linears
from patch.pipeline.config.imports import HubMask
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import ImportSettings, PruneSettings, StatisticsSettings
from patch.pipeline.stages._common import mask_header, measured, prepare_device
from patch.pipeline.stages._progress import show_blocks
from patch.pruning.prune import prune
from patch.pruning.weights import save_weights
from patch.pruning.weights_header import weights_digest


def run_statistics(settings: StatisticsSettings, *, model: Path, sequences: Path, out: Path) -> None:
    """Collect the dense-model statistics that one-shot methods need, and write them to the folder ``out``."""
    device = prepare_device(settings.device)
    network, calibration = load_model(model, settings.dtype), load_sequences(sequences)
    with atomic_directory(out) as folder:
        paths = block_files(folder)

        def save(linears: dict[str, nn.Module], statistics: dict[str, InputStatistics]) -> None:
            save_statistics(next(paths), statistics)

        progress = show_blocks("statistics")
        walk_blocks(network, calibration, save, settings.batch_size, settings.gram, "dense", device, progress)


def run_prune(
    settings: PruneSettings,
    *,
    model: Path,
    mask: Path,
    sequences: Path | None = None,
    statistics: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Prune a model by one method and write its mask; save the updated weights in ``cache`` for the stage `update`.

    Methods that need the layers' inputs use ``sequences``, or ``statistics`` of the dense model.
    """
    network, masks = _prune(settings, model, sequences, statistics)
    if cache:
        save_weights(cache, prunable_linears(network), masks.header["digest"])
    save_masks(mask, masks)
    seconds = masks.header["cost"]["seconds"]
    print(f"{settings.method} {settings.pattern}: sparsity {masks.sparsity:.4f} in {seconds:.1f} s")


def run_update(
    settings: PruneSettings,
    *,
    model: Path,
    mask: Path,
    cache: Path,
    weights: Path,
    sequences: Path | None = None,
    statistics: Path | None = None,
) -> None:
    """Move the updated weights that the stage `prune` cached from ``cache`` to ``weights``, or compute them again.

    Snakemake removes the weights after the evaluation of the run. If the evaluation runs again, this stage therefore
    prunes again. It does not change the mask, so that jobs that depend on the mask do not rerun.

    Raises:
        InputError: The mask has other settings, or pruning again gives another mask.
    """
    if weights_digest(cache) == settings_digest(settings):
        weights.parent.mkdir(parents=True, exist_ok=True)
        cache.replace(weights)
        return
    prune_again(settings, model, mask, weights, sequences, statistics)


def prune_again(
    settings: PruneSettings,
    model: Path,
    mask: Path,
    weights: Path,
    sequences: Path | None = None,
    statistics: Path | None = None,
) -> None:
    """Prune a model whose mask exists, and write the updated weights.

    Raises:
        InputError: The mask has other settings, or pruning again gives another mask.
    """
    wanted = settings_digest(settings)
    stored = load_masks(mask)
    if stored.header.get("digest") != wanted:
        raise InputError(f"mask {mask} was made with other settings or for another model; remove it to make it again")
    network, masks = _prune(settings, model, sequences, statistics)
    check_masks(network, stored)
    if any(not stored.masks[name].equal(made) for name, made in masks.masks.items()):
        raise InputError(f"{mask}: pruning again gives another mask; remove it, so that all that depends on it follows")
    save_weights(weights, prunable_linears(network), wanted)


def _prune(
    settings: PruneSettings, model: Path, sequences: Path | None, statistics: Path | None = None
) -> tuple[nn.Module, MaskSet]:
    """Load and prune a model, and return it with its masks, whose header has their settings, digest and cost."""
    device = prepare_device(settings.device)
    # The model stays in host memory; pruning moves its blocks to the device one by one.
    network = load_model(model, settings.dtype)
    calibration = load_sequences(sequences) if sequences else None
    pattern = parse_pattern(settings.pattern, settings.sparsity)
    with measured(device) as cost:
        masks = prune(
            network,
            settings.method,
            pattern,
            calibration,
            settings.batch_size,
            settings.pruning,
            show_blocks(settings.method),
            statistics=statistics,
            device=device,
        )
    masks.header = mask_header(settings, cost)
    return network, masks


def run_import_mask(settings: ImportSettings, *, model: Path, source: Path, mask: Path) -> None:
    """Read a mask in a published format or this package's format, check it against the model, and write it."""
    network = load_skeleton(model)
    fetched = isinstance(settings.source, HubMask)
    file = source / settings.source.file if fetched else source
    prepare_device("cpu")
    with measured("cpu") as cost:
        if file.suffix == ".safetensors":
            masks = _read_own(file, settings)
            check_masks(network, masks)
        else:
            masks = read_published(file, network, settings.pattern, settings.tile)
    origin = read_json(source / "receipt.json") if fetched else {"path": str(source)}
    masks.header = mask_header(settings, cost) | {"imported": origin | masks.header}
    save_masks(mask, masks)
    print(f"{file}: {len(masks.masks)} layers, sparsity {masks.sparsity:.4f}, {masks.pattern}")


def _read_own(file: Path, settings: ImportSettings) -> MaskSet:
    masks = load_masks(file)
    if (masks.pattern, masks.tile) != (settings.pattern, settings.tile):
        raise InputError(
            f"{file}: pattern {masks.pattern}, tile {masks.tile}; "
            f"the configuration has {settings.pattern}, {settings.tile}"
        )
    return masks
