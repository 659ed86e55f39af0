"""Training of a small model on a corpus."""

from __future__ import annotations

import shutil
from pathlib import Path

from patch.data.sequences import load_sequences
from patch.files.io import atomic_directory
from patch.learning.pretraining import train
from patch.learning.trackers import Tracking
from patch.models.loading import load_tokenizer
from patch.pipeline.runs.stage_settings import ModelSettings
from patch.pipeline.stages._common import prepare_device
from patch.pipeline.stages._progress import report


def run_train(settings: ModelSettings, *, tokenizer: Path, sequences: Path, out: Path) -> None:
    """Train a small model and write its folder with its training curve."""
    prepare_device("cpu")
    encoder = load_tokenizer(tokenizer)
    checkpoints = out.parent / "checkpoints" / out.name
    tokens, tracking = load_sequences(sequences), Tracking(on_progress=report)
    with atomic_directory(out) as folder:
        model = train(settings.source, encoder, tokens, checkpoints, folder / "curve.jsonl", tracking)
        model.save_pretrained(folder)
        encoder.save_pretrained(folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
