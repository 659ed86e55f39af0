"""Tokenisation of documents, in one or several processes, and the separator tokens between them.

Several processes are used because the tokenizer's own threads are at most six times as fast: the conversion of the
result holds Python's lock and takes a sixth of the time.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING

import numpy as np

from patch.distributed.signals import STOP
from patch.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters per tokenizer call: enough to hide the overhead of a call, and small in memory.
_BATCH_CHARACTERS = 2_000_000
# Queued batches per process, so that none is idle while the main process reads and writes.
_WAITING = 2

_tokenizer: PreTrainedTokenizerBase | None = None


@dataclass(frozen=True)
class Separator:
    """Separator tokens between two documents of packed sequences.

    Attributes:
        eos: the end-of-sequence id, after every document.
        bos: the begin-of-sequence id that the tokenizer puts before every document; None if it adds none.
    """

    eos: int
    bos: int | None = None


def find_separator(tokenizer: PreTrainedTokenizerBase) -> Separator:
    """Return the separator of the documents that ``pack_sequences`` packs with this tokenizer.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or returns no token for text.
    """
    name = type(tokenizer).__name__
    if tokenizer.eos_token_id is None:
        raise InputError(f"{name} has no end-of-sequence token, which must separate the documents")
    (ids,) = tokenize(tokenizer, ["a"])
    if not ids:
        raise InputError(f"{name} makes no token of text; are the files of the tokenizer there?")
    begins = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return Separator(tokenizer.eos_token_id, tokenizer.bos_token_id if begins else None)


def token_stream(tokenizer: PreTrainedTokenizerBase, documents: list[str], append_eos: bool = True) -> np.ndarray:
    """Return the tokens of documents, each with one final end-of-sequence token: `[tokens]` of ``token_dtype``.

    Without ``append_eos`` they are those that the tokenizer makes.
    """
    eos = tokenizer.eos_token_id
    # Some tokenizers add the end-of-sequence token themselves.
    end = [eos] if append_eos and tokenize(tokenizer, ["a"])[0][-1:] != [eos] else []
    dtype = token_dtype(tokenizer)
    return np.concatenate([np.array(ids + end, dtype=dtype) for ids in tokenize(tokenizer, documents)])


def token_dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    """Return uint16 if it holds every id, else uint32."""
    return np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)


def tokenize(tokenizer: PreTrainedTokenizerBase, batch: list[str]) -> list[list[int]]:
    """Return the ids of each text, with the tokenizer's default special tokens."""
    # verbose=False: texts longer than the model's context are intended here.
    return tokenizer(batch, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]


def document_batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of successive documents, each list for one tokenizer call."""
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def tokens_in_order(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, processes: int, append_eos: bool = True
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the tokens of all documents, in order for any number of processes.

    Args:
        documents: the text; it is read a few batches ahead.
        tokenizer: see `token_stream`.
        processes: number of tokenising processes, created by `fork` if more than one; they end with this process.
        append_eos: see `token_stream`.

    Yields:
        The number of documents of each batch and their tokens `[tokens]`.

    Raises:
        InputError: a process was killed.
    """
    if processes == 1:
        for batch in document_batches(documents):
            yield len(batch), token_stream(tokenizer, batch, append_eos)
        return
    pool = ProcessPoolExecutor(processes, get_context("fork"), _start, (tokenizer,))
    waiting: deque[tuple[int, Future]] = deque()
    try:
        for batch in document_batches(documents):
            waiting.append((len(batch), pool.submit(_stream, batch, append_eos)))
            if len(waiting) == _WAITING * processes:
                count, future = waiting.popleft()
                yield count, future.result()
        for count, future in waiting:
            yield count, future.result()
    except BrokenProcessPool:
        raise InputError(
            f"one of {processes} processes that tokenise was killed, which happens when there is too little memory; "
            "lower `resources.threads` and run again; finished work is kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(tokenizer: PreTrainedTokenizerBase) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    # Each process needs only one thread.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Signals reach all processes of a job; the main process handles them.
    for number in (*STOP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit with the parent: children outlive a killed parent and hold each other's pipes open."""
    parent_process().join()
    os._exit(1)


def _stream(documents: list[str], append_eos: bool) -> np.ndarray:
    return token_stream(_tokenizer, documents, append_eos)
