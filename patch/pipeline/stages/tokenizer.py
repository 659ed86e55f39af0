"""Tokenizer of the small models, a byte-level BPE that is trained on a corpus' train split."""

from __future__ import annotations

from pathlib import Path

from patch.data.corpus import read_documents
from patch.data.tokenizer import train_tokenizer
from patch.files.io import atomic_directory
from patch.pipeline.runs.stage_settings import TokenizerSettings


def run(settings: TokenizerSettings, *, corpus: Path, out: Path) -> None:
    """Train a tokenizer and write its folder."""
    tokenizer = train_tokenizer(read_documents(corpus, "train"), settings.vocab_size)
    with atomic_directory(out) as folder:
        tokenizer.save_pretrained(folder)
