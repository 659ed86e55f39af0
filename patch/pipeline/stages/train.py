"""Training of a small model on a corpus."""

from __future__ import annotations

import shutil
from pathlib import Path

from patch.data.sequences import load_sequences
from patch.files.io import atomic_directory
from patch.learning.pretraining import train
from patch.models.loading import load_tokenizer
from patch.pipeline.runs.stage_settings import ModelSettings
from patch.pipeline.stages._common import prepare_device


def run(settings: ModelSettings, *, tokenizer: Path, sequences: Path, out: Path) -> None:
    """Train a small model and write its folder with its training curve."""
    prepare_device("cpu")
    encoder = load_tokenizer(tokenizer)
    checkpoints = out.parent / "checkpoints" / out.name
    with atomic_directory(out) as folder:
        model = train(settings.source, encoder, load_sequences(sequences), checkpoints, folder / "curve.jsonl")
        model.save_pretrained(folder)
        encoder.save_pretrained(folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
