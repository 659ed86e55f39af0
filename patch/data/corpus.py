"""Corpus on disk: one file per split and a manifest. Only this module downloads data sets from the hub."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import get_args

import numpy as np

from patch.data import sources
from patch.data.corpus_settings import Corpus, FilesSource, HubSource, PackageSource, Split, SplitBySeed
from patch.errors import InputError, suggest
from patch.files.io import atomic_directory, write_json
from patch.hub.errors import hub_errors

SPLITS: tuple[str, ...] = get_args(Split)


def fetch_corpus(corpus: Corpus, out: Path) -> None:
    """Create the folder ``out``: `<split>.jsonl` (hub: `<split>.parquet`) with the column `text`, and `manifest.json`.

    Packages and lists of files are cleaned, deduplicated and divided into disjoint splits by a seeded shuffle of
    documents. Files that a mapping names are only cleaned. Data sets of the hub stay unchanged, including empty
    documents: published perplexities count them.

    Raises:
        InputError: a split of the source is missing or holds no text.
    """
    source = corpus.source
    with atomic_directory(out) as folder:
        if isinstance(source, HubSource):
            parts = _fetch_hub(source, folder)
        elif isinstance(source, FilesSource) and isinstance(source.files, dict):
            parts = _write_splits(_mapped(source), folder)
        else:
            parts = _write_splits(_split_by_seed(_reader(source), source.split), folder)
        write_json(folder / "manifest.json", {"source": source.model_dump(), "parts": parts})


def read_documents(folder: Path, split: str) -> Iterator[str]:
    """Return the documents of one split, in the order of the source.

    Raises:
        InputError: the folder has no such split.
    """
    readers = {".jsonl": _read_json_lines, ".parquet": _read_parquet}
    for ending, read in readers.items():
        if (path := Path(folder) / f"{split}{ending}").exists():
            return read(path)
    known = [name for name in SPLITS if any((Path(folder) / f"{name}{ending}").exists() for ending in readers)]
    hint = suggest(split, known) if known else "it has no splits; was it fetched?"
    raise InputError(f"corpus {folder} has no text in its split `{split}`; {hint}")


def assign_splits(lengths: np.ndarray, split: SplitBySeed) -> np.ndarray:
    """Assign each document to a split: the shuffled documents fill the splits in proportion to their fractions.

    Args:
        lengths: `[documents]` characters.
        split: fractions and seed.

    Returns:
        `[documents]` indices into ``SPLITS``; the splits match the fractions of characters up to one document.
    """
    order = np.random.default_rng(split.seed).permutation(len(lengths))
    ends = np.cumsum(lengths[order], dtype=np.float64)
    middles = (ends - lengths[order] / 2) / ends[-1]
    # side="right" skips splits of fraction zero; without the last edge, rounding cannot exceed it.
    fractions = np.cumsum([getattr(split, name) for name in SPLITS])
    assigned = np.empty(len(lengths), dtype=np.int64)
    assigned[order] = np.searchsorted(fractions[:-1], middles, side="right")
    return assigned


def _reader(source: PackageSource | FilesSource) -> Callable[[], Iterator[str]]:
    """Return a function that iterates over the cleaned, distinct documents from the start."""
    if isinstance(source, PackageSource):
        return lambda: _unique(sources.clean(sources.package_documents(source), source.remove))
    files = sources.expand(source.files)
    return lambda: _unique(sources.clean(chain.from_iterable(sources.file_documents(f, source.field) for f in files)))


def _unique(documents: Iterable[str]) -> Iterator[str]:
    seen: set[bytes] = set()
    for document in documents:
        digest = hashlib.blake2b(document.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield document


def _split_by_seed(read: Callable[[], Iterator[str]], split: SplitBySeed) -> Iterator[tuple[str, str]]:
    # Two passes, so that the text never has to fit in memory.
    lengths = np.array([len(document) for document in read()])
    if not len(lengths):
        raise InputError("the corpus holds no text: every document is empty")
    for index, document in zip(assign_splits(lengths, split), read(), strict=True):
        yield SPLITS[index], document


def _mapped(source: FilesSource) -> Iterator[tuple[str, str]]:
    for split, files in sources.files_by_part(source).items():
        for file in files:
            for document in sources.clean(sources.file_documents(file, source.field)):
                yield split, document


def _write_splits(documents: Iterable[tuple[str, str]], folder: Path) -> dict[str, dict[str, int]]:
    """Write `(split, text)` pairs and return the number of documents and characters of each non-empty split."""
    files, parts = {}, {}
    with ExitStack() as stack:
        for split, text in documents:
            if split not in files:
                files[split] = stack.enter_context((folder / f"{split}.jsonl").open("w", encoding="utf-8"))
                parts[split] = {"documents": 0, "characters": 0}
            files[split].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            parts[split]["documents"] += 1
            parts[split]["characters"] += len(text)
    return parts


def _fetch_hub(source: HubSource, folder: Path) -> dict[str, dict[str, int]]:
    import datasets

    parts = {}
    # With the usual cache, `datasets` would take any cached revision when the hub does not answer.
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        for split, hub_split in source.splits.items():
            files = f", files {source.data_files}" if source.data_files else ""
            what = f"data set {source.repo} at {source.revision}{files}, split {hub_split!r}"
            with hub_errors(f"{what} cannot be fetched"):
                table = datasets.load_dataset(
                    source.repo,
                    source.name,
                    data_files=source.data_files,
                    revision=source.revision,
                    split=hub_split,
                    cache_dir=cache,
                    trust_remote_code=False,
                )
                if source.field not in table.column_names:
                    known = suggest(source.field, table.column_names)
                    raise InputError(
                        f"data set {source.repo}: `field` is {source.field!r}, which is no column; {known}"
                    )
                table = table.select_columns([source.field])
                if source.field != "text":
                    table = table.rename_column(source.field, "text")
                table.to_parquet(str(folder / f"{split}.parquet"))
            parts[split] = {"documents": len(table)}
    return parts


def _read_json_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024, columns=["text"]):
        yield from batch.column("text").to_pylist()
