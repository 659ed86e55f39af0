"""Corpus from a package, files or a hub, divided into train, calibration, validation and test splits."""

from __future__ import annotations

from pathlib import Path

from patch.data.corpus import fetch_corpus
from patch.pipeline.runs.stage_settings import CorpusSettings


def run(settings: CorpusSettings, *, out: Path) -> None:
    """Make the folder of a corpus."""
    fetch_corpus(settings.corpus, out)
