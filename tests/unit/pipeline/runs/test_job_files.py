"""Tests of job files: a stage reads the written values, or raises an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patch.errors import InputError
from patch.pipeline.runs.job_files import JobFiles, read_inputs, read_settings
from patch.pipeline.runs.stage_settings import TokenizerSettings

SETTINGS = TokenizerSettings(upstream="a", vocab_size=300)
INPUTS = {"corpus": "it's; $(touch X)", "records": ["a b", "c"]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_round_trip() -> None:
    files = JobFiles()
    settings, inputs = files.settings("tokenizer", SETTINGS), files.inputs(INPUTS)
    assert not Path(settings).exists(), "nothing is written while a workflow is parsed"
    files.write()
    assert read_settings(settings, "tokenizer") == SETTINGS.model_dump(mode="json")
    assert read_inputs(inputs) == INPUTS


def test_path_changes_with_every_part() -> None:
    files = JobFiles()
    changed = TokenizerSettings(upstream="a", vocab_size=301)
    settings = [files.settings(*one) for one in (("tokenizer", SETTINGS), ("train", SETTINGS), ("tokenizer", changed))]
    inputs = [files.inputs(INPUTS), files.inputs(INPUTS | {"corpus": "b"}), files.inputs({"corpus": INPUTS["corpus"]})]
    assert len(set(settings + inputs)) == 6
    assert files.inputs(dict(reversed(INPUTS.items()))) == inputs[0]


def test_damaged_file_is_refused_and_written_again() -> None:
    files = JobFiles()
    path = files.settings("tokenizer", SETTINGS)
    files.write()
    good = Path(path).read_text()
    for text, expected in (
        (good.replace("300", "301"), "damaged or edited"),
        (json.dumps(json.loads(good) | {"more": 1}), "damaged or edited"),
        ("[]", "damaged or edited"),
        (good[:-20], "not valid JSON"),
    ):
        Path(path).write_text(text)
        with pytest.raises(InputError, match=expected):
            read_settings(path, "tokenizer")
        files.write()
        assert read_settings(path, "tokenizer")["vocab_size"] == 300
    Path(path).unlink()
    with pytest.raises(InputError, match="no such file; `snakemake` writes it"):
        read_settings(path, "tokenizer")


def test_settings_of_another_stage_are_refused() -> None:
    files = JobFiles()
    path = files.settings("tokenizer", SETTINGS)
    files.write()
    with pytest.raises(InputError, match="not of `train`"):
        read_settings(path, "train")
    with pytest.raises(InputError, match="not of `inputs`"):
        read_inputs(path)


def test_files_that_are_there_are_left_alone() -> None:
    files = JobFiles()
    path = Path(files.settings("tokenizer", SETTINGS))
    files.write()
    before = path.stat()
    files.write()
    assert path.stat() == before
