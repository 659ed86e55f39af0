"""Token sequences of equal length, and their `.npy` files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from patch.data.tokens import batches, find_separator, join, token_dtype, tokenize
from patch.errors import InputError
from patch.files.io import atomic_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The only header that `save_windows` and NumPy write for such arrays. NumPy's own reader evaluates any literal.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '<u(?P<width>[24])', 'fortran_order': False, "
    rb"'shape': \((?P<count>[1-9][0-9]{0,14}), (?P<seqlen>[1-9][0-9]{0,14})\), \} *\n",
    re.DOTALL,
)
_BEFORE_HEADER = 10
_MOST_HEADER = 1024


def pack_windows(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, seqlen: int, limit: int | None = None
) -> Iterator[np.ndarray]:
    """Yield sequences from the stream of all documents, each followed by an end-of-sequence token; drop the tail.

    ``patch.data.packing.pack_file`` does the same in several processes and can resume.

    Args:
        documents: the text, read and tokenised on demand; empty documents are skipped.
        tokenizer: tokenizer with its default special tokens; its begin-of-sequence token, if any, precedes every
            document.
        seqlen: tokens per sequence.
        limit: maximum number of sequences.

    Yields:
        Blocks `[n, seqlen]`, n >= 1, of ids in the dtype of ``token_dtype``; each block fits in memory.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or returns no token for text.
    """
    find_separator(tokenizer)
    left = float("inf") if limit is None else limit
    rest = np.empty(0, dtype=token_dtype(tokenizer))
    for batch in batches(filter(None, documents)):
        if left <= 0:
            return
        block, rest = cut(np.concatenate([rest, join(tokenizer, batch)]), seqlen, left)
        left -= len(block)
        if len(block):
            yield block


def cut(stream: np.ndarray, seqlen: int, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Split `[tokens]` into complete sequences `[n, seqlen]`, n <= ``limit``, and the remaining tokens."""
    count = int(min(len(stream) // seqlen, limit))
    return stream[: count * seqlen].reshape(count, seqlen), stream[count * seqlen :]


def sample_windows(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, samples: int, seqlen: int, seed: int
) -> tuple[np.ndarray, Literal["documents", "stream"]]:
    """Return calibration sequences for a ``seed``: one random crop from each of ``samples`` random long documents.

    Text with too few documents of more than ``seqlen`` tokens gives random sequences of the packed stream instead.

    Returns:
        `[samples, seqlen]` ids, and the source of the sequences: `documents` or `stream`.

    Raises:
        InputError: the text has fewer sequences than ``samples``.
    """
    documents = list(documents)
    generator = np.random.default_rng(seed)
    shuffled = (documents[index] for index in generator.permutation(len(documents)))
    long = (ids for batch in batches(shuffled) for ids in tokenize(tokenizer, batch) if len(ids) > seqlen)
    chosen = list(islice(long, samples))
    if len(chosen) == samples:
        starts = [int(generator.integers(len(ids) - seqlen + 1)) for ids in chosen]
        crops = [ids[start : start + seqlen] for ids, start in zip(chosen, starts, strict=True)]
        return np.array(crops, dtype=token_dtype(tokenizer)), "documents"
    blocks = list(pack_windows(documents, tokenizer, seqlen))
    count = sum(map(len, blocks))
    if count < samples:
        raise InputError(
            f"calibration: the text makes {count} windows of {seqlen} tokens, not {samples}; "
            "lower `calibration.samples` or `calibration.seqlen`, or give more text"
        )
    return np.concatenate(blocks)[generator.choice(count, samples, replace=False)], "stream"


def joined_windows(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, seqlen: int) -> np.ndarray:
    r"""Return perplexity sequences: join documents by `\n\n`, tokenise once, cut without overlap, drop the tail.

    Returns:
        `[count, seqlen]` ids.

    Raises:
        InputError: the text is shorter than one sequence.
    """
    (ids,) = tokenize(tokenizer, ["\n\n".join(documents)])
    count = len(ids) // seqlen
    if not count:
        raise InputError(f"perplexity: the text has {len(ids)} tokens; lower `seqlen` from {seqlen} or give more text")
    return np.array(ids[: count * seqlen], dtype=token_dtype(tokenizer)).reshape(count, seqlen)


def save_windows(path: Path, blocks: Iterable[np.ndarray]) -> int:
    """Write blocks `[n, seqlen]` of equal width and dtype as one `.npy` array, atomically and block by block.

    Returns:
        The number of sequences.

    Raises:
        InputError: there are no sequences.
    """
    count, first = 0, None
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        for block in blocks:
            if first is None:
                first = block[:1]
                write_header(file, first, 0)
            assert block.shape[1:] == first.shape[1:] and block.dtype == first.dtype
            file.write(np.ascontiguousarray(block).data)
            count += len(block)
        if first is None:
            raise InputError(f"{Path(path).name}: the text does not fill one window; lower `seqlen` or give more text")
        # The format reserves room for a growing first axis, so that both headers have the same length.
        file.seek(0)
        write_header(file, first, count)
    return count


def load_windows(path: Path) -> np.ndarray:
    """Open a file of ``save_windows`` as a read-only memory map: `[count, seqlen]` uint16 or uint32 ids.

    Raises:
        InputError: the file is missing, truncated, or of another format.
    """
    try:
        with open(path, "rb") as file:
            start, size = file.read(_MOST_HEADER), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise InputError(f"token windows {path}: no such file") from None
    except OSError as error:
        raise InputError(f"token windows {path}: cannot be read ({error.strerror})") from None
    header = _HEADER.match(start)
    if not header:
        raise InputError(f"token windows {path}: truncated or not a .npy file of [count, seqlen] uint16 or uint32")
    width, count, seqlen = (int(header[group]) for group in ("width", "count", "seqlen"))
    offset, expected = header.end(), header.end() + count * seqlen * width
    if int.from_bytes(header["length"], "little") != offset - _BEFORE_HEADER or size != expected:
        raise InputError(f"token windows {path}: truncated or damaged: {size} bytes, expected {expected}")
    return np.memmap(path, f"<u{width}", "r", offset, (count, seqlen))


def write_header(file: BinaryIO, first: np.ndarray, count: int) -> None:
    """Write the header of an `.npy` file of ``count`` rows like ``first``; its length is independent of the count."""
    header = np.lib.format.header_data_from_array_1_0(first) | {"shape": (count, *first.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)
