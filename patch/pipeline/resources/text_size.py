"""Estimates of the size of a corpus' text, without reading or fetching it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from patch.data.corpus_settings import FilesSource, HubSource, PackageSource, Use
from patch.data.sources import expand
from patch.pipeline.runs.store import Store

MB = 1e6
# Size of the text in arrow files of `datasets` as a multiple of the download (WikiText-2: 2.8, C4: 2.6, SlimPajama:
# 1.7).
ARROW = 2.8
# Lower bound: English text has 4 to 5 in a large vocabulary, and 2.9 in a vocabulary of 2048.
CHARACTERS_PER_TOKEN = 2.5
# The same in a vocabulary of Llama 2's size or more (WikiText-2: 3.8 in that of Llama 2, 4.3 in that of Qwen2.5).
LARGE_VOCABULARY, CHARACTERS_PER_LARGE_TOKEN = 32_000, 3.7
# MB of text of a hub data set's splits, from its page on the hub. Only the size of a whole download is configured.
HUB_SPLITS = {
    ("Salesforce/wikitext", "wikitext-2-raw-v1"): {"train": 11.1, "validation": 1.16, "test": 1.31},
    ("Salesforce/wikitext", "wikitext-103-raw-v1"): {"train": 546.0, "validation": 1.16, "test": 1.31},
}


def corpus_mb(store: Store, corpus: str) -> float | None:
    """Return an upper bound of the size of a corpus' text in MB, or None if its package is not installed."""
    source = store.experiment.corpora[corpus].source
    if isinstance(source, HubSource):
        return 1000 * source.size_gb * ARROW
    if isinstance(source, PackageSource):
        return _module_mb(source)
    return _files_mb(store.corpus_files(corpus))


def split_mb(store: Store, use: Use) -> float | None:
    """Return an upper bound of the size of the text of one split in MB, or None if its package is not installed."""
    source = store.experiment.corpora[use.corpus].source
    whole = corpus_mb(store, use.corpus)
    if isinstance(source, HubSource):
        return HUB_SPLITS.get((source.repo, source.name), {}).get(source.splits[use.split], whole)
    if isinstance(source, FilesSource) and isinstance(source.files, dict):
        return _files_mb(expand(source.files[use.split]))
    return whole and whole * getattr(source.split, use.split)


def _files_mb(paths: list[str] | list[Path]) -> float:
    return sum(Path(path).stat().st_size for path in paths) / MB


def _module_mb(source: PackageSource) -> float | None:
    """Return the size in MB of the module that contains a package's text, without importing it."""
    module = source.text.partition(":")[0].replace(".", "/")
    try:
        files = distribution(source.distribution).files or []
    except PackageNotFoundError:
        return None
    sizes = [file.size or 0 for file in files if str(file) == f"{module}.py" or str(file).startswith(f"{module}/")]
    return sum(sizes) / MB
