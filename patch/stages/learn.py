"""Mask learning."""

from __future__ import annotations

import shutil
from pathlib import Path

from patch.data.windows import load_windows
from patch.distributed import is_first, process_group
from patch.errors import InputError
from patch.layout import spec_digest
from patch.learning.learn import learn
from patch.learning.proxsparse import proxsparse
from patch.masks.packed import check_masks, load_masks, save_masks
from patch.models import load_model
from patch.specs import LearnSpec
from patch.stages._common import measured, prepare_device


def run(
    spec: LearnSpec,
    *,
    model: Path,
    windows: Path,
    mask: Path,
    curve: Path,
    checkpoints: Path,
    pattern_mask: Path | None = None,
    tile_mask: Path | None = None,
    frozen_mask: Path | None = None,
    processes: int = 1,
    nodes: int = 1,
) -> None:
    """Learn a model's mask and write it with its training curve.

    With several ``processes`` a node this is one of them: the command line starts them all.
    """
    device = prepare_device(spec.device)
    with process_group(device, processes * nodes):
        network = load_model(model, spec.dtype, device)
        priors = {"pattern_prior": pattern_mask, "tile_prior": tile_mask, "frozen": frozen_mask}
        start = {name: load_masks(path) for name, path in priors.items() if path}
        for masks in start.values():
            check_masks(network, masks)
        if spec.method == "patch-tile" and "frozen" not in start:
            raise InputError("patch-tile needs the 2:4 masks of its sparse tiles: give --frozen-mask")
        cost: dict[str, float] = {}
        files = {"folder": checkpoints, "curve": curve, "upstream": spec.upstream}
        with measured(cost, device):
            if spec.method == "proxsparse":
                masks = proxsparse(network, load_windows(windows), spec.settings, spec.seed, **files)
            else:
                masks = learn(
                    network,
                    spec.method,
                    load_windows(windows),
                    spec.settings,
                    spec.sparsity,
                    spec.tile,
                    spec.seed,
                    **files,
                    **{name: masks.masks for name, masks in start.items()},
                )
        if is_first():
            masks.header = {"settings": spec.model_dump(mode="json"), "digest": spec_digest(spec), "cost": cost}
            save_masks(mask, masks)
            shutil.rmtree(checkpoints, ignore_errors=True)
            print(f"{spec.method}: sparsity {masks.sparsity:.4f}, target {spec.sparsity:g}, in {cost['seconds']:.1f} s")
