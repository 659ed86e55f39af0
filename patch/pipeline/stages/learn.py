"""Mask learning."""

from __future__ import annotations

import shutil
from pathlib import Path

from patch.data.sequences import load_sequences
from patch.data.tokenization import Separator, find_separator
from patch.distributed.collectives import is_first, on_first, process_group
from patch.errors import InputError
from patch.learning.learn import learn
from patch.learning.maskpro import maskpro
from patch.learning.proxsparse import proxsparse
from patch.learning.sharded_model import load_sharded
from patch.learning.trackers import Tracking
from patch.masks.packed import check_masks, save_masks
from patch.models.loading import load_model, load_tokenizer
from patch.pipeline.runs.stage_settings import LearnSettings
from patch.pipeline.stages._common import load_expected, mask_header, measured, prepare_device
from patch.pipeline.stages._progress import report

# Mapping of the stage's inputs to the arguments of `learn`.
START = {"pattern_mask": "pattern_prior", "tile_mask": "tile_prior", "frozen_mask": "frozen"}


def run_learn(
    settings: LearnSettings,
    *,
    model: Path,
    sequences: Path,
    mask: Path,
    curve: Path,
    checkpoints: Path,
    pattern_mask: Path | None = None,
    tile_mask: Path | None = None,
    frozen_mask: Path | None = None,
    processes: int = 1,
    nodes: int = 1,
    report_to: list[str] | None = None,
    tracker_folder: Path = Path("watch"),
    run_name: str = "learn",
    shard_weights: str = "",
    offload: str = "",
) -> None:
    """Learn a model's mask and write it with its training curve.

    With several ``processes`` on a node this function runs in each of them; the command line starts all of them.
    ``report_to`` are names in `patch.learning.trackers.TRACKERS`. With any text as ``shard_weights`` each process loads
    its rows of the prunable weights alone. With any text as ``offload`` the gradients and moments of the pattern logits
    are in the host's memory.
    """
    device = prepare_device(settings.device)
    tracking = Tracking(tuple(report_to or ()), tracker_folder, run_name, settings.model_dump(mode="json"), report)
    with process_group(device, processes * nodes):
        on_first(tracking.check)
        weights = None
        if shard_weights:
            network, weights = load_sharded(model, settings.dtype, device, settings.tile)
        else:
            network = load_model(model, settings.dtype, device)
        paths = {"pattern_mask": pattern_mask, "tile_mask": tile_mask, "frozen_mask": frozen_mask}
        found = {name: load_expected(path, settings.masks.get(name), name) for name, path in paths.items()}
        start = {START[name]: masks for name, masks in found.items() if masks}
        for masks in start.values():
            check_masks(network, masks)
        if settings.method == "patch-tile" and "frozen" not in start:
            raise InputError("patch-tile needs the 2:4 masks of its sparse tiles: give --frozen-mask")
        if settings.method == "maskpro" and "pattern_prior" not in start:
            raise InputError("maskpro needs the 2:4 masks that it starts from: give --pattern-mask")
        files = {"folder": checkpoints, "curve": curve, "upstream": settings.upstream, "tracking": tracking}
        with measured(device) as cost:
            if settings.method == "proxsparse":
                masks = proxsparse(network, load_sequences(sequences), settings.learning, settings.seed, **files)
            elif settings.method == "maskpro":
                initial = start["pattern_prior"].masks
                masks = maskpro(network, load_sequences(sequences), settings.learning, initial, settings.seed, **files)
            else:
                masks = learn(
                    network,
                    settings.method,
                    load_sequences(sequences),
                    settings.learning,
                    settings.sparsity,
                    settings.tile,
                    settings.seed,
                    separator=_separator(model) if settings.learning.cut_attention else None,
                    weights=weights,
                    offload=bool(offload),
                    **files,
                    **{name: masks.masks for name, masks in start.items()},
                )
        if is_first():
            masks.header |= mask_header(settings, cost)
            save_masks(mask, masks)
            shutil.rmtree(checkpoints, ignore_errors=True)
            print(
                f"{settings.method}: sparsity {masks.sparsity:.4f}, target {settings.sparsity:g}, "
                f"in {cost['seconds']:.1f} s"
            )


def _separator(model: Path) -> Separator | None:
    """Return the separator of documents in the sequences, or None if the model has no tokenizer."""
    # Without any of these files, transformers makes an empty tokenizer of the model's family.
    if not any((model / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    return find_separator(load_tokenizer(model))
