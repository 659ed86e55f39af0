"""Statistics of the inputs of a dense model's layers, with one file for each block."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from patch.calibration.input_statistics import InputStatistics, block_files, save_statistics
from patch.calibration.walk import walk_blocks
from patch.data.sequences import load_sequences
from patch.files.io import atomic_directory
from patch.models.loading import load_model
from patch.pipeline.runs.stage_settings import StatisticsSettings
from patch.pipeline.stages._common import prepare_device
from patch.pipeline.stages._progress import show_blocks


def run(settings: StatisticsSettings, *, model: Path, sequences: Path, out: Path) -> None:
    """Collect the dense-model statistics that one-shot methods need, and write them to the folder ``out``."""
    device = prepare_device(settings.device)
    network, calibration = load_model(model, settings.dtype), load_sequences(sequences)
    with atomic_directory(out) as folder:
        paths = block_files(folder)

        def save(linears: dict[str, nn.Module], statistics: dict[str, InputStatistics]) -> None:
            save_statistics(next(paths), statistics)

        progress = show_blocks("statistics")
        walk_blocks(network, calibration, save, settings.batch_size, settings.gram, "dense", device, progress)
