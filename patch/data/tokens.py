"""Tokenisation of documents, and the separator tokens between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patch.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters per tokenizer call: enough to hide the overhead of a call, and small in memory.
_BATCH_CHARACTERS = 2_000_000


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
    """Return the separator of the documents that ``pack_windows`` packs with this tokenizer.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or returns no token for text.
    """
    name = type(tokenizer).__name__
    if tokenizer.eos_token_id is None:
        raise InputError(f"{name} has no end-of-sequence token, which must part the documents")
    (ids,) = tokenize(tokenizer, ["a"])
    if not ids:
        raise InputError(f"{name} makes no token of text; are the files of the tokenizer there?")
    begins = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    return Separator(tokenizer.eos_token_id, tokenizer.bos_token_id if begins else None)


def join(tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> np.ndarray:
    """Return the tokens of documents, each with one final end-of-sequence token: `[tokens]` of ``token_dtype``."""
    eos = tokenizer.eos_token_id
    # Some tokenizers add the end-of-sequence token themselves.
    end = [] if tokenize(tokenizer, ["a"])[0][-1:] == [eos] else [eos]
    dtype = token_dtype(tokenizer)
    return np.concatenate([np.array(ids + end, dtype=dtype) for ids in tokenize(tokenizer, documents)])


def token_dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    """Return uint16 if it holds every id, else uint32."""
    return np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)


def tokenize(tokenizer: PreTrainedTokenizerBase, batch: list[str]) -> list[list[int]]:
    """Return the ids of each text, with the tokenizer's default special tokens."""
    # verbose=False: texts longer than the model's context are intended here.
    return tokenizer(batch, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]


def batches(documents: Iterable[str]) -> Iterator[list[str]]:
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
