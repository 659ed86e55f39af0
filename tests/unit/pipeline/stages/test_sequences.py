"""Stage that packs sequences: a signal stops it, it resumes, and it does not mix two texts."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from patch.data import packing, tokenization
from patch.data.sequences import load_sequences, pack_sequences
from patch.data.tokenizer import train_tokenizer
from patch.distributed.signals import EXIT_RESUMABLE
from patch.models.loading import load_tokenizer
from patch.pipeline.runs.stage_settings import SequencesSettings
from patch.pipeline.stages import sequences as stage

SPEC = SequencesSettings(upstream="", kind="packed", split="train", seqlen=16)


def write(folder: Path, text: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    documents = [f"{text} {index}" for index in range(100)]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in documents))
    return documents


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr(tokenization, "_BATCH_CHARACTERS", 50)
    monkeypatch.setattr(packing, "_SECONDS_BETWEEN_RECORDS", 0.0)
    train_tokenizer(["some text to learn from"], 300).save_pretrained(tmp_path / "tokenizer")
    write(tmp_path / "corpus", "some text")
    return {"corpus": tmp_path / "corpus", "tokenizer": tmp_path / "tokenizer", "out": tmp_path / "w.npy"}


def stopped_by(monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], number: int, workers: int) -> None:
    write_json, calls = packing.write_checked_json, []

    def then_signal(*arguments: Any) -> None:
        write_json(*arguments)
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
        patched.setattr(packing, "write_checked_json", then_signal)
        stage.run_sequences(SPEC, **files, workers=workers)
    assert stop.value.code == EXIT_RESUMABLE and not files["out"].exists()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_stops_it_and_it_goes_on(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: Any, number: int, workers: int
) -> None:
    stage.run_sequences(SPEC, **files | {"out": files["out"].with_name("whole.npy")})
    stopped_by(monkeypatch, files, number, workers)
    assert "stopped by a signal; run again to resume" in capfd.readouterr().out
    stage.run_sequences(SPEC, **files, workers=workers)
    assert "resuming after" in capfd.readouterr().out
    assert files["out"].read_bytes() == files["out"].with_name("whole.npy").read_bytes()


def test_a_corpus_that_was_made_anew_begins_anew(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_by(monkeypatch, files, signal.SIGTERM, 1)
    documents = write(files["corpus"], "text some")
    stage.run_sequences(SPEC, **files)
    tokenizer = train_tokenizer(["some text to learn from"], 300)
    assert load_sequences(files["out"]).tolist() == pack_sequences(documents, tokenizer, 16).tolist()


@pytest.mark.parametrize("kind", ["calibration", "joined"])
def test_unpacked_sequences_can_be_loaded(kind: str, files: dict[str, Path], capfd: Any) -> None:
    settings = SPEC.model_copy(update={"kind": kind, "samples": 3, "seed": 0})
    stage.run_sequences(settings, **files)
    found = load_sequences(files["out"])
    assert found.shape[1] == settings.seqlen
    assert f"{len(found)} sequences of {settings.seqlen} tokens" in capfd.readouterr().out


def test_sequences_without_end_tokens(files: dict[str, Path]) -> None:
    documents = write(files["corpus"], "some text")
    tokenizer = load_tokenizer(files["tokenizer"])
    stage.run_sequences(SPEC.model_copy(update={"kind": "packed-without-eos"}), **files)
    stream = [token for text in documents for token in tokenizer(text)["input_ids"]]
    assert load_sequences(files["out"]).flatten().tolist() == stream[: len(stream) // 16 * 16]
