"""Packing of a corpus into one file of token sequences, in several processes and with resumption.

Complete sequences are written in document order to a file beside the result. A record holds the number of sequences
and documents so far, and the left-over tokens. A process that is killed at any moment loses only the work since the
last record, and the final file is identical to the bit.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import numpy as np
from pydantic import Field

from patch.data.processes import tokens_in_order
from patch.data.tokens import find_separator, token_dtype
from patch.data.windows import cut, write_header
from patch.errors import InputError
from patch.files.io import read_checked_json, write_checked_json
from patch.files.schema import Count, Schema, check

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Limits the work that a killed process loses.
_SECONDS_BETWEEN_RECORDS = 5.0


class _Record(Schema):
    """Progress of the file: complete sequences, their documents, and left-over tokens."""

    identity: str
    documents: Count = 0
    windows: Count = 0
    rest: list[Annotated[int, Field(ge=0, lt=2**32)]] = []


def partial_folder(path: Path) -> Path:
    """Return the folder of an unfinished ``path``; ``pack_file`` removes it in the end."""
    return path.with_name(f"{path.stem}.partial")


def pack_file(
    path: Path,
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    seqlen: int,
    limit: int | None = None,
    processes: int = 1,
    identity: str = "",
) -> int:
    """Write the sequences of ``pack_windows`` as an `.npy` file, independent of processes and interruptions.

    Memory is bounded by a few batches per process, or by the longest document. A stopped process leaves
    ``partial_folder(path)``, and the next call with the same arguments resumes from it.

    Args:
        path: the file, which appears when it is complete.
        documents: the text, from the beginning and in the same order at each call; empty ones are skipped.
        tokenizer: see ``pack_windows``.
        seqlen: tokens per sequence.
        limit: maximum number of sequences.
        processes: number of tokenising processes, created by `fork` if more than one.
        identity: identity of the text and the tokenizer; partial work of another identity is not used.

    Returns:
        The number of sequences.

    Raises:
        InputError: the text is shorter than one sequence, the tokenizer is unsuitable (see ``find_separator``), the
            disk is full, or a process was killed.
    """
    find_separator(tokenizer)
    identity = f"{identity} {seqlen} {limit} {token_dtype(tokenizer)}"
    folder = partial_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(folder / "windows.npy") as file:
            record = _fill(file, folder, documents, tokenizer, seqlen, limit, processes, identity)
            if not record.windows:
                shutil.rmtree(folder)
                raise InputError(f"{path.name}: the text does not fill one window; lower `seqlen` or give more text")
            # The format reserves room for a growing first axis, so that both headers have the same length.
            file.seek(0)
            write_header(file, np.empty((1, seqlen), token_dtype(tokenizer)), record.windows)
            _flush(file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{folder}: {error.strerror}; free some space and run again, what is done is kept") from error
    (folder / "windows.npy").replace(path)
    shutil.rmtree(folder)
    return record.windows


def _fill(
    file: BinaryIO,
    folder: Path,
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    seqlen: int,
    limit: int | None,
    processes: int,
    identity: str,
) -> _Record:
    """Write all missing sequences and return the record after the last one."""
    dtype = token_dtype(tokenizer)
    most = float("inf") if limit is None else limit
    write_header(file, np.empty((1, seqlen), dtype), 0)
    record = _read_record(folder, identity, file, seqlen, dtype)
    file.truncate(file.tell() + record.windows * seqlen * dtype.itemsize)
    file.seek(0, os.SEEK_END)
    remaining = islice(filter(None, documents), record.documents, None)
    saved = time.monotonic()
    for count, ids in tokens_in_order(remaining if record.windows < most else (), tokenizer, processes):
        stream = np.concatenate([np.array(record.rest, dtype=dtype), ids])
        block, rest = cut(stream, seqlen, most - record.windows)
        file.write(block.data)
        # At the limit the rest is unused and may be long.
        rest = rest[:seqlen].tolist()
        record = _Record(
            identity=identity, documents=record.documents + count, windows=record.windows + len(block), rest=rest
        )
        if record.windows == most:
            break
        if time.monotonic() - saved >= _SECONDS_BETWEEN_RECORDS:
            _flush(file)
            write_checked_json(folder / "record.json", record.model_dump())
            saved = time.monotonic()
            print(f"{record.windows} windows of {record.documents} documents", flush=True)
    return record


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    path.touch()
    with path.open("r+b") as file:
        yield file


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _read_record(folder: Path, identity: str, file: BinaryIO, seqlen: int, dtype: np.dtype) -> _Record:
    """Read the last record; return an empty one if it is damaged, of another identity, or the file is too short."""
    new = _Record(identity=identity)
    try:
        path = folder / "record.json"
        record = check(_Record, read_checked_json(path), str(path))
    except InputError:
        return new
    size = file.tell() + record.windows * seqlen * dtype.itemsize
    fits = len(record.rest) <= seqlen and max(record.rest, default=0) <= np.iinfo(dtype).max
    if record.identity != identity or os.fstat(file.fileno()).st_size < size or not fits:
        return new
    print(f"going on after {record.windows} windows of {record.documents} documents", flush=True)
    return record
