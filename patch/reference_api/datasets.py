"""Text and token sequences for the public code's data set names, from the hub or from local files."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from patch.data import sources
from patch.data.corpus import fetch_corpus, read_documents
from patch.data.corpus_settings import Corpus, HubSource
from patch.data.packing import pack_file
from patch.data.sequences import joined_sequences, load_sequences, sample_sequences
from patch.errors import InputError
from patch.learning.finetuning_settings import Finetuning
from patch.learning.learning_settings import Learning
from patch.reference_api.api_settings import HUB, ApiSettings
from patch.reference_api.arguments import PruneArguments

Purpose = Literal["calibration", "learning", "test"]

VARIABLES = {
    "c4": "PATCH_C4",
    "wikitext2": "PATCH_WIKITEXT2",
    "slimpajama": "PATCH_SLIMPAJAMA",
    "ptb": "PATCH_PTB",
}
# Local text has no splits: without this variable, calibration reads the test text of WikiText-2.
WIKITEXT2_TRAIN = "PATCH_WIKITEXT2_TRAIN"
CALIBRATION_SEQLEN = 2048
PERPLEXITY_SEQLEN = 4096
# Bounds the documents in memory: the shard of C4 has fewer, SlimPajama has millions.
_DRAWN_FROM = 400_000
_SPLITS = {"calibration": ("calibration", "train"), "learning": ("train",), "test": ("test",)}


@dataclass(frozen=True)
class Text:
    """Documents for one purpose.

    Attributes:
        files: local files, read unchanged.
        corpus: corpus to fetch if there are no local files.
        split: split of the corpus to read.
        cache: folder that keeps corpora from the hub.
    """

    files: tuple[Path, ...] = ()
    corpus: Corpus | None = None
    split: str = ""
    cache: Path = Path()

    def identity(self) -> str:
        """Return a name that changes with the text; local files count by content, not by path."""
        digest = blake2b(digest_size=12)
        if self.corpus is None:
            files = self.files
        else:
            source = self.corpus.source
            if isinstance(source, HubSource):
                return f"{source.repo}@{source.revision[:12]} {source.name or ''} {source.splits[self.split]}"
            digest.update(f"{self.split} {source.model_dump_json()}".encode())
            files = _files(source.files) if source.kind == "files" else ()
        for path in files:
            with path.open("rb") as file:
                digest.update(path.suffix.encode() + file_digest(file, "blake2b").digest())
        return f"local text {digest.hexdigest()}"

    @contextmanager
    def documents(self) -> Iterator[Iterator[str]]:
        """Yield the documents in order, valid within the block."""
        if self.corpus is None:
            yield sources.clean(chain.from_iterable(sources.file_documents(path, "text") for path in self.files))
        elif isinstance(self.corpus.source, HubSource):
            digest = blake2b(self.corpus.source.model_dump_json().encode(), digest_size=8).hexdigest()
            folder = self.cache / digest
            if not folder.exists():
                fetch_corpus(self.corpus, folder)
            yield read_documents(folder, self.split)
        else:  # local files may have changed since the last read
            with tempfile.TemporaryDirectory() as folder:
                fetch_corpus(self.corpus, Path(folder) / "corpus")
                yield read_documents(Path(folder) / "corpus", self.split)


def find_text(name: str, purpose: Purpose, settings: ApiSettings) -> Text:
    """Return the text of a data set name, from the environment, else the settings file, else the hub.

    Raises:
        InputError: a variable matches no file, or the corpus has no split for the purpose.
    """
    files = _from_environment(name, purpose)
    if files:
        return Text(files=files)
    corpus = settings.corpora.get(name) or Corpus(source=HUB[name])
    for split in _SPLITS[purpose]:
        if split in corpus.split_names:
            return Text(corpus=corpus, split=split, cache=Path(settings.folder) / "corpora")
    wanted = " or ".join(f"`{split}`" for split in _SPLITS[purpose])
    raise InputError(
        f"corpus `{name}` has no split {wanted}, needed for {purpose}; it has: {', '.join(corpus.split_names)}"
    )


def _from_environment(name: str, purpose: Purpose) -> tuple[Path, ...]:
    variable = VARIABLES.get(name, "")
    if name == "wikitext2" and purpose == "calibration":
        if os.environ.get(WIKITEXT2_TRAIN):
            variable = WIKITEXT2_TRAIN
        elif os.environ.get(variable):
            warnings.warn(
                f"calibration reads the text of {variable}, on which perplexity is measured; set {WIKITEXT2_TRAIN}",
                stacklevel=2,
            )
    patterns = [pattern for pattern in os.environ.get(variable, "").split(os.pathsep) if pattern]
    try:
        return _files(patterns)
    except InputError as error:
        raise InputError(f"environment variable {variable}: {error}") from None


def _files(patterns: list[str] | dict[str, list[str]]) -> tuple[Path, ...]:
    if isinstance(patterns, dict):
        patterns = [pattern for part in patterns.values() for pattern in part]
    return tuple(sources.expand(patterns))


def context_length(model: nn.Module) -> int | None:
    """Return the model's context length in tokens; None if its configuration lacks it."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_length(name: str, seqlen: int, model: nn.Module) -> int:
    """Check a sequence length and return it.

    Raises:
        InputError: the length exceeds the model's context.
    """
    longest = context_length(model)
    if longest is not None and seqlen > longest:
        raise InputError(
            f"`{name}` is {seqlen}, longer than the model's context of {longest} tokens; use at most {longest}"
        )
    return seqlen


def sequence_length(name: str, given: int | None, default: int, model: nn.Module) -> int:
    """Return the given length after a check, or the default limited to the model's context."""
    return check_length(name, given, model) if given else min(default, context_length(model) or default)


def calibration_sequences(
    text: Text, tokenizer: PreTrainedTokenizerBase, arguments: PruneArguments, seqlen: int, seed: int
) -> np.ndarray:
    """Return calibration sequences, `[nsamples, seqlen]` ids.

    Raises:
        InputError: the text is too short.
    """
    with text.documents() as documents:
        try:
            first = islice(documents, _DRAWN_FROM)
            return sample_sequences(first, tokenizer, arguments.nsamples, seqlen, seed)[0]
        except InputError as error:
            raise InputError(
                f"`prune_args.nsamples` is {arguments.nsamples} with calibration_dataset "
                f"{arguments.calibration_dataset!r}: {error}"
            ) from None


def training_sequences(
    path: Path, text: Text, tokenizer: PreTrainedTokenizerBase, settings: Learning | Finetuning
) -> np.ndarray:
    """Return the sequences of a run, `[count, seqlen]` ids, from ``path``, which is written if missing."""
    if not path.exists():
        append_eos = not isinstance(settings, Learning) or settings.append_eos
        with text.documents() as documents:
            pack_file(path, documents, tokenizer, settings.seqlen, settings.text_sequences, append_eos=append_eos)
    return load_sequences(path)


def perplexity_sequences(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, name: str, settings: ApiSettings
) -> np.ndarray:
    """Return the sequences of the test text, `[count, seqlen]` ids.

    The sentences of the Penn Treebank are joined by spaces, as in its published perplexities.
    """
    seqlen = sequence_length(
        "evaluation.perplexity_seqlen", settings.evaluation.perplexity_seqlen, PERPLEXITY_SEQLEN, model
    )
    with find_text(name, "test", settings).documents() as documents:
        return joined_sequences([" ".join(documents)] if name == "ptb" else documents, tokenizer, seqlen)
