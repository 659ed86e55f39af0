"""Fine-tuning of a pruned run under its mask."""

from __future__ import annotations

import shutil
from pathlib import Path

from patch.data.sequences import load_sequences
from patch.distributed.collectives import is_first, on_first, process_group
from patch.learning.finetune import finetune
from patch.learning.trackers import Tracking
from patch.models.loading import load_model, prunable_linears
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import FinetuneSettings
from patch.pipeline.stages._common import load_expected, measured, prepare_device
from patch.pipeline.stages._progress import report
from patch.pruning.weights import load_weights, save_weights


def run_finetune(
    settings: FinetuneSettings,
    *,
    model: Path,
    sequences: Path,
    mask: Path,
    finetuned: Path,
    curve: Path,
    checkpoints: Path,
    weights: Path | None = None,
    processes: int = 1,
    nodes: int = 1,
    report_to: list[str] | None = None,
    tracker_folder: Path = Path("watch"),
    run_name: str = "finetune",
) -> None:
    """Fine-tune the kept weights of a pruned model, and write them to ``finetuned`` with the training curve.

    ``weights`` are the updated weights of the pruning method, if it has any. With several ``processes`` on a node this
    function runs in each of them; the command line starts all of them. ``report_to`` are names in
    `patch.learning.trackers.TRACKERS`.
    """
    device = prepare_device(settings.device)
    tracking = Tracking(tuple(report_to or ()), tracker_folder, run_name, settings.model_dump(mode="json"), report)
    with process_group(device, processes * nodes):
        on_first(tracking.check)
        masks = load_expected(mask, settings.mask)
        network = load_model(model, settings.dtype, device)
        if weights:
            load_weights(weights, prunable_linears(network), settings.mask.digest)
        files = {"folder": checkpoints, "curve": curve, "upstream": settings.upstream, "tracking": tracking}
        with measured(device) as cost:
            tokens = load_sequences(sequences)
            finetune(network, masks, settings.kind, tokens, settings.finetuning, settings.seed, **files)
        if is_first():
            save_weights(finetuned, prunable_linears(network), settings_digest(settings), cost)
            shutil.rmtree(checkpoints, ignore_errors=True)
            print(f"finetune {settings.kind}: sparsity {masks.sparsity:.4f}, in {cost['seconds']:.1f} s")
