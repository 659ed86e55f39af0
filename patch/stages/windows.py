"""Token windows: for calibration, for learning and training, for perplexity."""

from __future__ import annotations

from pathlib import Path

from patch.data.corpus import read_documents
from patch.data.windows import joined_windows, pack_windows, sample_windows, save_windows
from patch.models import load_tokenizer
from patch.specs import WindowsSpec


def run(spec: WindowsSpec, *, corpus: Path, tokenizer: Path, out: Path) -> None:
    """Make one file of token windows."""
    documents, encoder = read_documents(corpus, spec.split), load_tokenizer(tokenizer)
    if spec.kind == "calibration":
        windows, way = sample_windows(documents, encoder, spec.samples, spec.seqlen, spec.seed)
        print(f"calibration windows from {'crops of documents' if way == 'documents' else 'the packed stream'}")
        blocks = [windows]
    elif spec.kind == "packed":
        blocks = pack_windows(documents, encoder, spec.seqlen, spec.samples)
    else:
        blocks = [joined_windows(documents, encoder, spec.seqlen)]
    count = save_windows(out, blocks)
    print(f"{out}: {count} windows of {spec.seqlen} tokens")
