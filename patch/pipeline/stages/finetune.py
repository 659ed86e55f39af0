"""Fine-tuning of a pruned run under its mask."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from patch.data.sequences import load_sequences
from patch.distributed.collectives import is_first, on_first, process_group
from patch.learning.finetune import finetune
from patch.learning.trackers import Tracking
from patch.models.loading import load_model, prunable_linears
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import FinetuneSettings, PruneSettings
from patch.pipeline.stages._common import load_expected, measured, prepare_device
from patch.pipeline.stages._progress import report
from patch.pipeline.stages.prune import prune_again
from patch.pruning.weights import load_weights, save_weights
from patch.pruning.weights_header import weights_digest


def run_finetune(
    settings: FinetuneSettings,
    *,
    model: Path,
    sequences: Path,
    mask: Path,
    finetuned: Path,
    curve: Path,
    checkpoints: Path,
    calibration: Path | None = None,
    statistics: Path | None = None,
    processes: int = 1,
    nodes: int = 1,
    report_to: list[str] | None = None,
    tracker_folder: Path = Path("watch"),
    run_name: str = "finetune",
) -> None:
    """Fine-tune the kept weights of a pruned model, and write them to ``finetuned`` with the training curve.

    A method that updates the weights prunes again, by the sequences ``calibration`` or the ``statistics`` of the dense
    model, once for all processes and for a resumed run. With several ``processes`` on a node this
    function runs in each of them; the command line starts all of them. ``report_to`` are names in
    `patch.learning.trackers.TRACKERS`.
    """
    device = prepare_device(settings.device)
    tracking = Tracking(tuple(report_to or ()), tracker_folder, run_name, settings.model_dump(mode="json"), report)
    with process_group(device, processes * nodes):
        on_first(tracking.check)
        masks = load_expected(mask, settings.mask)
        network = load_model(model, settings.dtype, device)
        if settings.pruning:
            start = checkpoints / "start.safetensors"
            on_first(partial(_make_start, settings.pruning, model, mask, start, calibration, statistics))
            load_weights(start, prunable_linears(network), settings.mask.digest)
        files = {"folder": checkpoints, "curve": curve, "upstream": settings.upstream, "tracking": tracking}
        with measured(device) as cost:
            tokens = load_sequences(sequences)
            finetune(network, masks, settings.kind, tokens, settings.finetuning, settings.seed, **files)
        if is_first():
            save_weights(finetuned, prunable_linears(network), settings_digest(settings), cost)
            shutil.rmtree(checkpoints, ignore_errors=True)
            print(f"finetune {settings.kind}: sparsity {masks.sparsity:.4f}, in {cost['seconds']:.1f} s")


def _make_start(
    settings: PruneSettings, model: Path, mask: Path, start: Path, calibration: Path | None, statistics: Path | None
) -> None:
    """Write the weights that pruning has updated to ``start``, unless the file exists."""
    if weights_digest(start) != settings_digest(settings):
        prune_again(settings, model, mask, start, calibration, statistics)
