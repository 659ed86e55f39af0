"""Corpus from a package, files or a hub, divided into train, calibration, validation and test splits."""

from __future__ import annotations

from pathlib import Path

from patch.data.corpus import fetch_corpus
from patch.pipeline.runs.specs import CorpusSpec


def run(spec: CorpusSpec, *, out: Path) -> None:
    """Make the folder of a corpus."""
    fetch_corpus(spec.corpus, out)
