"""Text -> token ids: what a tokenizer makes of documents, and what parts them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from patch.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Text that is tokenised in one call: large enough to hide what a call costs, small enough for any memory.
_BATCH_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class Separator:
    """What parts two documents of packed windows.

    Attributes:
        eos: the end-of-sequence id, after every document.
        bos: the begin-of-sequence id that the tokenizer puts before every document; None where it puts none.
    """

    eos: int
    bos: int | None = None


def find_separator(tokenizer: PreTrainedTokenizerBase) -> Separator:
    """What parts the documents that ``pack_windows`` packs with this tokenizer.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or makes no token of text.
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
    """The tokens of documents, each ended by one end-of-sequence token: `[tokens]` in the dtype of ``token_dtype``."""
    eos = tokenizer.eos_token_id
    # Some tokenizers end a document by themselves.
    end = [] if tokenize(tokenizer, ["a"])[0][-1:] == [eos] else [eos]
    dtype = token_dtype(tokenizer)
    return np.concatenate([np.array(ids + end, dtype=dtype) for ids in tokenize(tokenizer, documents)])


def token_dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    """The smaller of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)


def tokenize(tokenizer: PreTrainedTokenizerBase, batch: list[str]) -> list[list[int]]:
    """Ids of each text, with the special tokens that the tokenizer adds by itself."""
    # verbose=False: a text longer than the model's context is what is wanted here, not a mistake.
    return tokenizer(batch, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]


def batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Successive documents in lists of a size that is tokenised in one call."""
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
