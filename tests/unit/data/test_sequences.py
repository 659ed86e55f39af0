"""Tests of token sequences and their files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch.data import tokenization
from patch.data.sequences import joined_sequences, load_sequences, pack_sequences, sample_sequences, save_sequences
from patch.data.tokenizer import train_tokenizer
from patch.errors import InputError

EOS = 1
documents_of = st.lists(st.text(max_size=40), max_size=20)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some text to learn from"], 300)


def stream_of(documents, tokenizer) -> list[int]:
    return [token for text in documents if text for token in [*tokenizer(text)["input_ids"], EOS]]


@given(documents_of, st.integers(4, 16), st.integers(1, 60))
def test_packing_cuts_the_stream_for_any_batches(tokenizer, documents, seqlen, batch_characters):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_BATCH_CHARACTERS", batch_characters)
        packed = pack_sequences(documents, tokenizer, seqlen)
    stream = stream_of(documents, tokenizer)
    assert packed.dtype == np.uint16 and packed.shape == (len(stream) // seqlen, seqlen)
    assert packed.ravel().tolist() == stream[: packed.size]


def test_packing_needs_an_end_of_sequence_token():
    bare = train_tokenizer(["x"], 300)
    bare.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        pack_sequences(["x"], bare, 4)


def test_joining_tokenises_once_and_keeps_empty_documents(tokenizer):
    documents = ["first one", "", "another document"]
    ids = tokenizer("first one\n\n\n\nanother document")["input_ids"]
    sequences = joined_sequences(documents, tokenizer, 6)
    assert sequences.ravel().tolist() == ids[: len(ids) // 6 * 6]
    with pytest.raises(InputError, match="lower `seqlen` from 4096"):
        joined_sequences(documents, tokenizer, 4096)


def test_samples_are_crops_of_long_documents(tokenizer):
    documents = [f"document {index} " * (index % 5 + 1) for index in range(60)]
    sequences, drawn = sample_sequences(documents, tokenizer, samples=20, seqlen=24, seed=3)
    assert drawn == "documents" and sequences.shape == (20, 24)
    texts = [tokenizer.decode(row) for row in sequences]
    sources = [next(i for i, document in enumerate(documents) if text in document) for text in texts]
    assert len(set(sources)) == 20
    assert all(len(tokenizer(documents[source])["input_ids"]) > 24 for source in sources)


def test_short_documents_give_distinct_sequences_of_the_stream(tokenizer):
    documents = [f"n {index}" for index in range(100)]
    sequences, drawn = sample_sequences(documents, tokenizer, samples=10, seqlen=16, seed=0)
    packed = pack_sequences(documents, tokenizer, 16).tolist()
    assert drawn == "stream"
    assert len({tuple(row) for row in sequences.tolist()}) == 10
    assert all(row in packed for row in sequences.tolist())


@pytest.mark.parametrize("length", [3, 30])
def test_samples_are_a_function_of_the_seed(tokenizer, length):
    documents = [f"{index} " * length for index in range(100)]
    first, again, other = (sample_sequences(documents, tokenizer, 8, 16, seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_too_little_text_to_sample(tokenizer):
    with pytest.raises(InputError, match="makes 1 sequences of 16 tokens, not 5; lower `calibration.samples`"):
        sample_sequences(["just a few words"], tokenizer, 5, 16, 0)


@given(st.integers(1, 12), st.integers(1, 9), st.sampled_from([np.uint16, np.uint32]))
def test_files_round_trip(tmp_path_factory, count, seqlen, dtype):
    path = tmp_path_factory.mktemp("sequences") / "s.npy"
    sequences = np.arange(count * seqlen, dtype=dtype).reshape(count, seqlen)
    save_sequences(path, sequences)
    loaded = load_sequences(path)
    assert isinstance(loaded, np.memmap) and loaded.dtype == dtype
    assert np.array_equal(loaded, sequences) and np.array_equal(np.load(path), sequences)


def test_truncated_and_foreign_files(tmp_path):
    path = tmp_path / "w.npy"
    with pytest.raises(InputError, match="no such file"):
        load_sequences(path)
    save_sequences(path, np.ones((10, 8), dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        load_sequences(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="truncated or not"):
        load_sequences(path)
    path.write_text("text")
    with pytest.raises(InputError, match="truncated or not"):
        load_sequences(path)
    for foreign in (np.ones((2, 2)), np.ones(4, np.uint16), np.ones((0, 4), np.uint16), np.ones((4, 2), np.uint16).T):
        np.save(path, foreign)
        with pytest.raises(InputError, match="not a .npy file"):
            load_sequences(path)
    np.save(path, np.array([None]), allow_pickle=True)
    with pytest.raises(InputError, match="not a .npy file"):
        load_sequences(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(20, 8)", "(10, 8)"),
        ("(20, 8)", "(20, 4)"),
        ("(20, 8)", "(8, 20"),
        ("(20, 8)", "(-2, 8)"),
        ("(20, 8)", "(0, 8) "),
        ("(20, 8)", "(9999999999999999999, 8)"),
        ("(20, 8)", "(True, 8)"),
        ("(20, 8)", "[" * 9000),
        ("'<u2'", "'<u4'"),
        ("'<u2'", "'>u2'"),
        ("'<u2'", "'|O' "),
        ("False", "True "),
        ("NUMPY\x01", "NUMPY\x03"),
    ],
)
def test_headers_that_do_not_fit_the_file(tmp_path, old, new):
    path = tmp_path / "w.npy"
    save_sequences(path, np.arange(160, dtype=np.uint16).reshape(20, 8))
    whole = path.read_bytes()
    length = max(0, len(new) - len(old))
    # A longer header takes the place of its own padding, or moves the data.
    padding = b" " * length if length < 60 else b""
    path.write_bytes(whole.replace(padding + b"\n", b"\n", 1).replace(old.encode(), new.encode(), 1))
    with pytest.raises(InputError, match=r"w\.npy: truncated or "):
        load_sequences(path)
