"""A corpus as one file of packed windows: in several processes, and going on where it was stopped.

Windows are written in the order of the documents to a file beside the result, whole ones alone. A record says how many
there are, how many documents have gone into them, and which tokens are left over; so a process that is killed at any
moment loses what came after the last record, and what is made in the end is the same to the bit.
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

# What may be lost when the process is killed.
_SECONDS_BETWEEN_RECORDS = 5.0


class _Record(Schema):
    """How far the file is: whole windows in it, documents that they come from, and tokens left over."""

    identity: str
    documents: Count = 0
    windows: Count = 0
    rest: list[Annotated[int, Field(ge=0, lt=2**32)]] = []


def partial_folder(path: Path) -> Path:
    """Where ``pack_file`` keeps an unfinished ``path``; gone when it is finished."""
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
    """Write the windows of ``pack_windows`` as an `.npy` file; the bytes do not depend on processes and interruptions.

    Memory is bounded by a few batches a process, or by the longest document. A process that is stopped leaves
    ``partial_folder(path)``, and the next call with the same arguments goes on there.

    Args:
        path: the file; appears when it is complete.
        documents: the text, from the beginning and in the same order at each call; empty ones are skipped.
        tokenizer: see ``pack_windows``.
        seqlen: tokens per window.
        limit: windows at most.
        processes: that tokenise, by `fork` where there are several.
        identity: of the text and the tokenizer; what another one has left is not used.

    Returns:
        The number of windows.

    Raises:
        InputError: there is not one window, the tokenizer is none for this (see ``find_separator``), the disk is
            full, or a process was killed.
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
            # The format reserves room for the first axis to grow, so that this header is as long as the first one.
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
    """Write all windows that are not there yet; the record after the last of them."""
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
        # At the limit the rest is of no use, and may be long.
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
    """Read the last record; an empty one if it is damaged, of something else, or the file has less than it says."""
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
