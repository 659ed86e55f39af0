"""Tests of the training of the byte-level BPE tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch.data.tokenizer import train_tokenizer

TEXT = [f"the quick brown fox number {index} jumps over the lazy dog" for index in range(100)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT, 320)


def test_sizes_and_special_tokens(tokenizer):
    assert len(tokenizer) == 320
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)


def test_no_special_token_is_added(tokenizer):
    assert not set(tokenizer("the quick fox")["input_ids"]) & {0, 1, 2}


@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_deterministic_and_the_same_after_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    assert train_tokenizer(TEXT, 320).get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "  the fox,\n\tjumps — ünïcode <eos> twice  "
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)
