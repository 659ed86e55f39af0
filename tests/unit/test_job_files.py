"""Job files: the stage reads what the workflow wrote, or an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patch.errors import InputError
from patch.job_files import JobFile, JobFiles, read_job_file
from patch.specs import TokenizerSpec

SETTINGS = TokenizerSpec(upstream="a", vocab_size=300)
INPUTS = {"corpus": "it's; $(touch X)", "records": ["a b", "c"]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_round_trip() -> None:
    files = JobFiles()
    path = files.path("tokenizer", SETTINGS, INPUTS)
    assert not Path(path).exists(), "nothing is written while a workflow is parsed"
    files.write()
    assert read_job_file(path) == JobFile("tokenizer", SETTINGS.model_dump(mode="json"), INPUTS)


def test_path_changes_with_every_part() -> None:
    files = JobFiles()
    changed = TokenizerSpec(upstream="a", vocab_size=301)
    paths = [
        files.path("tokenizer", SETTINGS, INPUTS),
        files.path("train", SETTINGS, INPUTS),
        files.path("tokenizer", changed, INPUTS),
        files.path("tokenizer", SETTINGS, INPUTS | {"corpus": "b"}),
    ]
    assert len(set(paths)) == 4
    assert files.path("tokenizer", SETTINGS, dict(reversed(INPUTS.items()))) == paths[0]


def test_damaged_file_is_refused_and_written_again() -> None:
    files = JobFiles()
    path = files.path("tokenizer", SETTINGS, INPUTS)
    files.write()
    good = Path(path).read_text()
    for text, expected in (
        (good.replace("300", "301"), "not those that its name stands for"),
        (json.dumps(json.loads(good) | {"more": 1}), "not a job file"),
        ("[]", "not a job file"),
        (good[:-20], "not valid JSON"),
    ):
        Path(path).write_text(text)
        with pytest.raises(InputError, match=expected):
            read_job_file(path)
        files.write()
        assert read_job_file(path).settings["vocab_size"] == 300
    Path(path).unlink()
    with pytest.raises(InputError, match="no such job file"):
        read_job_file(path)


def test_files_that_are_there_are_left_alone() -> None:
    files = JobFiles()
    path = Path(files.path("tokenizer", SETTINGS, INPUTS))
    files.write()
    before = path.stat()
    files.write()
    assert path.stat() == before
