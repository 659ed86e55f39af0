"""Token sequences of equal length, and their `.npy` files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from patch.data.tokenization import document_batches, find_separator, token_dtype, token_stream, tokenize
from patch.errors import InputError
from patch.files.io import atomic_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pack_sequences(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, seqlen: int) -> np.ndarray:
    """Cut the stream of all documents, each followed by an end-of-sequence token, into sequences; drop the tail.

    ``patch.data.packing.pack_file`` does the same in several processes, in bounded memory, and can resume.

    Args:
        documents: the text; empty documents are skipped.
        tokenizer: tokenizer with its default special tokens; its begin-of-sequence token, if any, precedes every
            document.
        seqlen: tokens per sequence.

    Returns:
        `[count, seqlen]` ids in the dtype of ``token_dtype``.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or returns no token for text.
    """
    find_separator(tokenizer)
    streams = [token_stream(tokenizer, batch) for batch in document_batches(filter(None, documents))]
    return cut(np.concatenate([np.empty(0, token_dtype(tokenizer)), *streams]), seqlen)[0]


def cut(stream: np.ndarray, seqlen: int, limit: float = float("inf")) -> tuple[np.ndarray, np.ndarray]:
    """Split `[tokens]` into complete sequences `[n, seqlen]`, n <= ``limit``, and the remaining tokens."""
    count = int(min(len(stream) // seqlen, limit))
    return stream[: count * seqlen].reshape(count, seqlen), stream[count * seqlen :]


def sample_sequences(
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
    long = (ids for batch in document_batches(shuffled) for ids in tokenize(tokenizer, batch) if len(ids) > seqlen)
    chosen = list(islice(long, samples))
    if len(chosen) == samples:
        starts = [int(generator.integers(len(ids) - seqlen + 1)) for ids in chosen]
        crops = [ids[start : start + seqlen] for ids, start in zip(chosen, starts, strict=True)]
        return np.array(crops, dtype=token_dtype(tokenizer)), "documents"
    packed = pack_sequences(documents, tokenizer, seqlen)
    if len(packed) < samples:
        raise InputError(
            f"calibration: the text makes {len(packed)} sequences of {seqlen} tokens, not {samples}; "
            "lower `calibration.samples` or `calibration.seqlen`, or give more text"
        )
    return packed[generator.choice(len(packed), samples, replace=False)], "stream"


def joined_sequences(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, seqlen: int) -> np.ndarray:
    r"""Return perplexity sequences: join documents by `\n\n`, tokenise once, cut without overlap, drop the tail.

    Returns:
        `[count, seqlen]` ids.

    Raises:
        InputError: the text is shorter than one sequence.
    """
    (ids,) = tokenize(tokenizer, ["\n\n".join(documents)])
    if len(ids) < seqlen:
        raise InputError(f"perplexity: the text has {len(ids)} tokens; lower `seqlen` from {seqlen} or give more text")
    return cut(np.array(ids, dtype=token_dtype(tokenizer)), seqlen)[0]


def save_sequences(path: Path, sequences: np.ndarray) -> None:
    """Write `[count, seqlen]` ids as an `.npy` file, atomically."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, sequences)


def load_sequences(path: Path) -> np.ndarray:
    """Open a file of sequences as a read-only memory map: `[count, seqlen]` uint16 or uint32 ids.

    Raises:
        InputError: the file is missing, truncated, or of another format.
    """
    problem = f"token sequences {path}: truncated or not a .npy file of [count, seqlen] uint16 or uint32"
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"token sequences {path}: no such file") from None
    except OSError as error:
        raise InputError(f"token sequences {path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # noqa: BLE001 - numpy's parser raises many types
        raise InputError(problem) from error
    if found.ndim != 2 or found.dtype not in (np.uint16, np.uint32) or not (found.size and found.flags.c_contiguous):
        raise InputError(problem)
    expected, size = found.offset + found.nbytes, os.stat(path).st_size
    if size != expected:
        raise InputError(f"token sequences {path}: truncated or damaged: {size} bytes, expected {expected}")
    return found
