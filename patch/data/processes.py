"""Tokenisation in several processes.

The tokenizer's own threads are at most six times as fast: the conversion of the result holds Python's lock and takes a
sixth of the time.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING

import numpy as np

from patch.data.tokens import batches, join
from patch.distributed.signals import STOP
from patch.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Queued batches per process, so that none is idle while the main process reads and writes.
_WAITING = 2

_tokenizer: PreTrainedTokenizerBase | None = None


def tokens_in_order(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, processes: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the tokens of all documents, in order for any number of processes.

    Args:
        documents: the text; it is read a few batches ahead.
        tokenizer: see `join`.
        processes: number of tokenising processes, created by `fork` if more than one; they end with this process.

    Yields:
        The number of documents of each batch and their tokens `[tokens]`.

    Raises:
        InputError: a process was killed.
    """
    if processes == 1:
        for batch in batches(documents):
            yield len(batch), join(tokenizer, batch)
        return
    pool = ProcessPoolExecutor(processes, get_context("fork"), _start, (tokenizer,))
    waiting: deque[tuple[int, Future]] = deque()
    try:
        for batch in batches(documents):
            waiting.append((len(batch), pool.submit(_join, batch)))
            if len(waiting) == _WAITING * processes:
                count, future = waiting.popleft()
                yield count, future.result()
        for count, future in waiting:
            yield count, future.result()
    except BrokenProcessPool:
        raise InputError(
            f"one of {processes} processes that tokenise was killed, which happens when there is too little memory; "
            "lower `resources.threads` and run again, what is done is kept"
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


def _join(documents: list[str]) -> np.ndarray:
    return join(_tokenizer, documents)
