"""Tests that packed files have the same bits for any number of processes and interruptions."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch.data import packing, tokenization
from patch.data.packing import pack_file
from patch.data.sequences import load_sequences
from patch.data.tokenizer import train_tokenizer
from patch.errors import InputError
from patch.files.io import read_checked_json, write_checked_json

ROOT = Path(__file__).parents[3]
EOS = 1


@pytest.fixture(scope="module")
def tokenizer():  # noqa: ANN201
    return train_tokenizer(["some text to learn from"], 300)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_BATCH_CHARACTERS", 50)
    monkeypatch.setattr(packing, "_SECONDS_BETWEEN_RECORDS", 0.0)


def texts(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return ["some text to learn "[: generator.randrange(19)] * generator.randrange(4) for _ in range(count)]


class Stopped(Exception):
    pass


def until(documents: list[str], count: int) -> Iterator[str]:
    yield from documents[:count]
    raise Stopped


@given(
    st.lists(st.text(max_size=40), max_size=20),
    st.integers(4, 16),
    st.none() | st.integers(1, 8),
    st.lists(st.integers(0, 20), max_size=3),
)
def test_the_file_is_the_stream_after_any_interruptions(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer,  # noqa: ANN001
    documents: list[str],
    seqlen: int,
    limit: int | None,
    stops: list[int],
) -> None:
    path = tmp_path_factory.mktemp("packing") / "w.npy"
    stream = [token for text in documents if text for token in [*tokenizer(text)["input_ids"], EOS]]
    count = min(len(stream) // seqlen, limit or len(stream))
    for stop in stops:
        try:
            pack_file(path, until(documents, stop), tokenizer, seqlen, limit)
        except Stopped:
            continue
        break  # the limit was met before
    if not count:
        with pytest.raises(InputError, match="does not fill one sequence"):
            pack_file(path, documents, tokenizer, seqlen, limit)
        assert not list(path.parent.iterdir())
        return
    assert path.exists() or pack_file(path, documents, tokenizer, seqlen, limit) == count
    assert load_sequences(path).ravel().tolist() == stream[: count * seqlen]
    assert not path.with_suffix(".partial").exists()
    np.save(path.with_name("plain.npy"), np.array(stream[: count * seqlen], dtype=np.uint16).reshape(count, seqlen))
    assert path.read_bytes() == path.with_name("plain.npy").read_bytes()


@pytest.mark.parametrize("limit", [None, 30])
def test_processes_change_nothing(tmp_path: Path, tokenizer, limit: int | None) -> None:  # noqa: ANN001
    made = []
    for processes in (1, 2, 3):
        path = tmp_path / f"{processes}.npy"
        pack_file(path, texts(300), tokenizer, 16, limit, processes)
        made.append(path.read_bytes())
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("processes", [1, 2])
def test_documents_follow_each_other_without_end_tokens(tmp_path: Path, tokenizer, processes: int) -> None:  # noqa: ANN001
    pack_file(tmp_path / "w.npy", texts(50), tokenizer, 16, processes=processes, append_eos=False)
    stream = [token for text in texts(50) for token in tokenizer(text)["input_ids"]]
    assert load_sequences(tmp_path / "w.npy").flatten().tolist() == stream[: len(stream) // 16 * 16]
    assert EOS not in stream


def test_packed_documents_are_not_tokenised_again(tmp_path: Path, tokenizer, monkeypatch) -> None:  # noqa: ANN001
    documents, seen = texts(100), []
    with pytest.raises(Stopped):
        pack_file(tmp_path / "w.npy", until(documents, 60), tokenizer, 16)
    make = tokenization.token_stream
    monkeypatch.setattr(
        tokenization, "token_stream", lambda tok, batch, eos: seen.extend(batch) or make(tok, batch, eos)
    )
    pack_file(tmp_path / "w.npy", documents, tokenizer, 16)
    full = [text for text in documents if text]
    assert seen == full[len(full) - len(seen) :] and len(seen) < 60


# Edits of the record, with a matching checksum.
EDITS = {
    "negative": {"sequences": -1},
    "half a document": {"documents": 1.5},
    "a number as text": {"sequences": "1"},
    "a negative token": {"rest": [-5]},
    "more than a sequence left": {"rest": [7] * 40},
    "a token of too many bits": {"rest": [70_000]},
}


@pytest.mark.parametrize("change", ["identity", "seqlen", "limit", "record", *EDITS, "file"])
def test_partial_work_of_another_text_is_not_used(tmp_path: Path, tokenizer, change: str) -> None:  # noqa: ANN001
    path, folder = tmp_path / "w.npy", tmp_path / "w.partial"
    with pytest.raises(Stopped):
        pack_file(path, until(texts(100, seed=1), 60), tokenizer, 16, 90, identity="other")
    if change == "record":
        (folder / "record.json").write_text('{"identity"')
    elif change in EDITS:
        record = read_checked_json(folder / "record.json")
        write_checked_json(folder / "record.json", record | EDITS[change])
    elif change == "file":
        os.truncate(folder / "sequences.npy", 200)
    # The partial work is of another text, so that any use of it changes the result.
    run = {"seqlen": 16, "limit": 90, "identity": "other"} | {
        "identity": {"identity": "this"},
        "seqlen": {"seqlen": 12},
        "limit": {"limit": 80},
    }.get(change, {})
    pack_file(path, texts(100), tokenizer, **run)
    pack_file(tmp_path / "fresh.npy", texts(100), tokenizer, **run)
    assert path.read_bytes() == (tmp_path / "fresh.npy").read_bytes()


# Sleeps in each batch, so that it can be killed in one.
PROGRAM = """
import sys, time
from pathlib import Path
from patch.data import packing, tokenization
from patch.data.tokenizer import train_tokenizer
sys.path.insert(0, sys.argv[4])
from test_packing import texts
tokenization._BATCH_CHARACTERS, packing._SECONDS_BETWEEN_RECORDS = 50, float(sys.argv[3])
make = tokenization.token_stream
tokenization.token_stream = lambda *arguments: time.sleep(0.01) or make(*arguments)
tokenizer = train_tokenizer(["some text to learn from"], 300)
print("begins", flush=True)
packing.pack_file(Path(sys.argv[1]), texts(600), tokenizer, 16, processes=int(sys.argv[2]))
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    def run(path: Path, processes: int, seconds: float) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(path), str(processes), str(seconds), str(Path(__file__).parent)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout.readline() == "begins\n"
        return process

    return run


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("processes", "seconds"), [(1, 0.1), (2, 0.0)])
def test_killed_at_any_moment(
    tmp_path: Path,
    start: Callable,
    tokenizer,  # noqa: ANN001
    processes: int,
    seconds: float,
) -> None:
    path, kills = tmp_path / "w.npy", 0
    for delay in (0.0, 0.05, 0.2, 0.35):
        process = start(path, processes, seconds)
        time.sleep(delay)
        workers = children(process.pid) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 20
        while any(map(alive, workers)):
            assert time.monotonic() < deadline, "processes outlive the one that started them"
            time.sleep(0.01)
    assert kills >= 2 and not path.exists() and path.with_suffix(".partial").exists()
    last = start(path, processes, seconds)
    output, _ = last.communicate()
    assert last.returncode == 0 and "resuming after" in output
    pack_file(tmp_path / "whole.npy", texts(600), tokenizer, 16)
    assert path.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not path.with_suffix(".partial").exists()


def test_killed_between_the_file_and_its_name(tmp_path: Path, tokenizer, monkeypatch) -> None:  # noqa: ANN001
    """The complete file, with its header and not yet moved, is resumed."""
    pack_file(tmp_path / "whole.npy", texts(100), tokenizer, 16)

    def dies(*arguments: object) -> None:
        raise Stopped

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Path, "replace", dies)
        patched.setattr(packing, "write_checked_json", lambda *arguments: None)
        pack_file(tmp_path / "w.npy", texts(100), tokenizer, 16)
    pack_file(tmp_path / "w.npy", texts(100), tokenizer, 16)
    assert (tmp_path / "w.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_process_that_is_killed_is_one_message(tmp_path: Path, tokenizer, monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr("patch.data.tokenization.token_stream", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(InputError, match="one of 2 processes that tokenise was killed.*lower `resources.threads`"):
        pack_file(tmp_path / "w.npy", texts(100), tokenizer, 16, processes=2)


def test_a_full_disk_keeps_what_is_done(tmp_path: Path, tokenizer, monkeypatch) -> None:  # noqa: ANN001
    flush, calls = packing._flush, []

    def full(file) -> None:  # noqa: ANN001
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    monkeypatch.setattr(packing, "_flush", full)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        pack_file(tmp_path / "w.npy", texts(100), tokenizer, 16)
    assert (tmp_path / "w.partial/record.json").exists()
    pack_file(tmp_path / "w.npy", texts(100), tokenizer, 16)
    pack_file(tmp_path / "whole.npy", texts(100), tokenizer, 16)
    assert (tmp_path / "w.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
