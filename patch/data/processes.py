"""Tokenise in several processes.

Processes and not the tokenizer's own threads: what is done with its result holds Python's lock, a sixth of the time,
so that threads are never more than six times as fast.
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

# Batches that a process has waiting, so that none is idle while the first reads and writes.
_WAITING = 2

_tokenizer: PreTrainedTokenizerBase | None = None


def tokens_in_order(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, processes: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The tokens of all documents, in their order whatever the number of processes.

    Args:
        documents: the text; read as far as needed, and a few batches ahead.
        tokenizer: see `join`.
        processes: that tokenise, by `fork` where there are several; they end with this one, even if it is killed.

    Yields:
        For each batch the number of its documents and their tokens `[tokens]`.

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
    # A thread for each core in every process would be too many.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Whoever stops the job stops all its processes; the first one decides what becomes of them.
    for number in (*STOP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed does not end its children, and these hold each other's pipes open."""
    parent_process().join()
    os._exit(1)


def _join(documents: list[str]) -> np.ndarray:
    return join(_tokenizer, documents)
