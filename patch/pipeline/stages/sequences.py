"""Token sequences for calibration, learning, training and perplexity."""

from __future__ import annotations

import os
from pathlib import Path

from patch.data.corpus import read_documents
from patch.data.packing import pack_file
from patch.data.sequences import joined_sequences, sample_sequences, save_sequences
from patch.distributed.signals import leave_when_asked
from patch.models.loading import load_tokenizer
from patch.pipeline.runs.layout import digest
from patch.pipeline.runs.stage_settings import SequencesSettings


def run_sequences(settings: SequencesSettings, *, corpus: Path, tokenizer: Path, out: Path, workers: int = 1) -> None:
    """Make one file of token sequences.

    Packed sequences are made by ``workers`` processes, and an interrupted run resumes.
    """
    with leave_when_asked("stopped by a signal; run again to resume"):
        count = _make(settings, corpus, tokenizer, out, workers)
    print(f"{out}: {count} sequences of {settings.seqlen} tokens")


def _make(settings: SequencesSettings, corpus: Path, tokenizer: Path, out: Path, workers: int) -> int:
    documents, encoder = read_documents(corpus, settings.split), load_tokenizer(tokenizer)
    if settings.kind.startswith("packed"):
        # A job may have fewer CPUs than it requested.
        workers = min(workers, len(os.sched_getaffinity(0)))
        identity = digest([settings.model_dump(mode="json"), _files(corpus), _files(tokenizer)])
        append_eos = settings.kind == "packed"
        return pack_file(out, documents, encoder, settings.seqlen, settings.samples, workers, identity, append_eos)
    if settings.kind == "calibration":
        sequences, way = sample_sequences(documents, encoder, settings.samples, settings.seqlen, settings.seed)
        print(f"calibration sequences from {'crops of documents' if way == 'documents' else 'the packed stream'}")
    else:
        sequences = joined_sequences(documents, encoder, settings.seqlen)
    save_sequences(out, sequences)
    return len(sequences)


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """Return the names, sizes and times of a folder's files, which change if the folder is made again."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return sorted((str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
