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
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import numpy as np
from pydantic import Field

from patch.data.sequences import cut
from patch.data.tokenization import find_separator, token_dtype, tokens_in_order
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
    sequences: Count = 0
    rest: list[Annotated[int, Field(ge=0, lt=2**32)]] = []


def pack_file(
    path: Path,
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    seqlen: int,
    limit: int | None = None,
    processes: int = 1,
    identity: str = "",
    append_eos: bool = True,
) -> int:
    """Write the sequences of ``pack_sequences`` as an `.npy` file, independent of processes and interruptions.

    Memory is bounded by a few batches per process, or by the longest document. A stopped process leaves
    the folder `<name>.partial`, and the next call with the same arguments resumes from it.

    Args:
        path: the file, which appears when it is complete.
        documents: the text, from the beginning and in the same order at each call; empty ones are skipped.
        tokenizer: see ``pack_sequences``.
        seqlen: tokens per sequence.
        limit: maximum number of sequences.
        processes: number of tokenising processes, created by `fork` if more than one.
        identity: identity of the text and the tokenizer; partial work of another identity is not used.
        append_eos: append the end-of-sequence token to each document, unless the tokenizer does so itself.

    Returns:
        The number of sequences.

    Raises:
        InputError: the text is shorter than one sequence, the tokenizer is unsuitable (see ``find_separator``), the
            disk is full, or a process was killed.
    """
    if append_eos:
        find_separator(tokenizer)
    dtype, most = token_dtype(tokenizer), float("inf") if limit is None else limit
    identity = f"{identity} {seqlen} {limit} {dtype} {append_eos}"
    folder = path.with_name(f"{path.stem}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "sequences.npy"
    try:
        partial.touch()
        with partial.open("r+b") as file:
            record = _resume(file, folder, identity, seqlen, dtype)
            remaining = islice(filter(None, documents), record.documents, None)
            saved = time.monotonic()
            for count, ids in tokens_in_order(
                remaining if record.sequences < most else (), tokenizer, processes, append_eos
            ):
                stream = np.concatenate([np.array(record.rest, dtype=dtype), ids])
                block, rest = cut(stream, seqlen, most - record.sequences)
                file.write(block.data)
                record = _Record(
                    identity=identity,
                    documents=record.documents + count,
                    sequences=record.sequences + len(block),
                    # At the limit the rest is unused and may be long.
                    rest=rest[:seqlen].tolist(),
                )
                if record.sequences == most:
                    break
                if time.monotonic() - saved >= _SECONDS_BETWEEN_RECORDS:
                    _flush(file)
                    write_checked_json(folder / "record.json", record.model_dump())
                    saved = time.monotonic()
                    print(f"{record.sequences} sequences of {record.documents} documents", flush=True)
            if not record.sequences:
                shutil.rmtree(folder)
                raise InputError(f"{path.name}: the text does not fill one sequence; lower `seqlen` or give more text")
            file.seek(0)
            _write_header(file, record.sequences, seqlen, dtype)
            _flush(file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{folder}: {error.strerror}; free some space and run again to resume") from error
    partial.replace(path)
    shutil.rmtree(folder)
    return record.sequences


def _write_header(file: BinaryIO, count: int, seqlen: int, dtype: np.dtype) -> None:
    """Write the `.npy` header of ``count`` sequences, whose length is independent of the count."""
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": (count, seqlen)})


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _resume(file: BinaryIO, folder: Path, identity: str, seqlen: int, dtype: np.dtype) -> _Record:
    """Return the last record, and truncate the file to the sequences that it counts.

    The record is empty if it is damaged or of another identity, or if the file is too short.
    """
    _write_header(file, 0, seqlen, dtype)
    start, size, width = file.tell(), os.fstat(file.fileno()).st_size, seqlen * dtype.itemsize
    path = folder / "record.json"
    try:
        record = check(_Record, read_checked_json(path), str(path))
    except InputError:
        record = _Record(identity=identity)
    fits = len(record.rest) <= seqlen and max(record.rest, default=0) <= np.iinfo(dtype).max
    if record.identity != identity or size < start + record.sequences * width or not fits:
        record = _Record(identity=identity)
    if record.documents:
        print(f"resuming after {record.sequences} sequences of {record.documents} documents", flush=True)
    file.truncate(start + record.sequences * width)
    file.seek(0, os.SEEK_END)
    return record
