"""Tests of separator tokens between the documents of a stream, and the types of ids."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from patch.data.sequences import pack_sequences
from patch.data.tokenization import Separator, find_separator, token_dtype, token_stream
from patch.data.tokenizer import train_tokenizer
from patch.errors import InputError

BOS, EOS = 0, 1
TEXTS = ["the first one", "a", "and another document"]


def tokenizer_with(template: str, bos: str = "<bos>") -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(["some text to learn from"], 300)
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("template", "bos", "expected", "before"),
    [
        ("$A", "<bos>", Separator(EOS), []),
        ("<bos> $A", "<bos>", Separator(EOS, BOS), [BOS]),
        # GPT-2: one token for both ends, and none at the beginning; OPT has it at the beginning.
        ("$A", "<eos>", Separator(EOS), []),
        ("<eos> $A", "<eos>", Separator(EOS, EOS), [EOS]),
        # Tokenizers that end a document by themselves, which must not end it twice.
        ("$A <eos>", "<bos>", Separator(EOS), []),
        ("<bos> $A <eos>", "<bos>", Separator(EOS, BOS), [BOS]),
    ],
)
def test_one_end_of_sequence_between_documents(template: str, bos: str, expected: Separator, before: list[int]) -> None:
    tokenizer = tokenizer_with(template, bos)
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    stream = [token for ids in plain for token in (*before, *ids, EOS)]
    assert find_separator(tokenizer) == expected
    assert token_stream(tokenizer, TEXTS).tolist() == stream
    assert pack_sequences(TEXTS, tokenizer, 4).ravel().tolist() == stream[: len(stream) // 4 * 4]


def test_a_tokenizer_without_vocabulary(tiny_model, tmp_path) -> None:  # noqa: ANN001
    """Refuse the tokenizer that transformers makes from a folder without tokenizer files."""
    from patch.models.loading import load_tokenizer

    tiny_model("qwen2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="makes no token of text"):
        find_separator(load_tokenizer(tmp_path))


def test_ids_take_two_bytes_where_they_fit() -> None:
    assert token_dtype(range(1 << 16)) == np.uint16
    assert token_dtype(range((1 << 16) + 1)) == np.uint32
