"""Tests that atomic writes leave the old or the new contents, and nothing else."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import patch.files.io
from patch.errors import InputError
from patch.files.io import atomic_directory, atomic_file, read_checked_json, read_json, write_checked_json, write_json


class Boom(BaseException):
    """Exception that, like a signal, passes every `except Exception`."""


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_file_appears_only_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.bin"
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent, "a rename across file systems is not atomic"
        assert temporary.suffix == target.suffix
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(tmp_path / "deep") == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Boom])
@pytest.mark.parametrize("before", [None, "old"])
def test_failed_file_leaves_the_old_contents(tmp_path: Path, error: type[BaseException], before: str | None) -> None:
    target = tmp_path / "a.txt"
    if before:
        target.write_text(before)
    with pytest.raises(error), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == (["a.txt"] if before else [])
    assert not before or target.read_text() == before


def test_file_cannot_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "inside").mkdir(parents=True)
    with pytest.raises(OSError), atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == ["a", "a/inside"]


def test_directory_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_directory(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "new").write_text("new")
        assert names(target) == ["old"]
    assert names(tmp_path) == ["folder", "folder/sub", "folder/sub/new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Boom])
@pytest.mark.parametrize("before", [False, True])
def test_failed_directory_leaves_the_old_contents(tmp_path: Path, error: type[BaseException], before: bool) -> None:
    target = tmp_path / "folder"
    if before:
        target.mkdir()
        (target / "old").write_text("old")
    with pytest.raises(error), atomic_directory(target) as temporary:
        (temporary / "new").write_text("half")
        raise error
    assert names(tmp_path) == (["folder", "folder/old"] if before else [])


def test_json_round_trip_and_failed_write(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"a": [1, 2.5, None]})
    assert read_json(target) == {"a": [1, 2.5, None]}
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert read_json(target) == {"a": [1, 2.5, None]}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe\x00", b""])
def test_bad_json_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    target = tmp_path / "a.json"
    if content is not None:
        target.write_bytes(content)
    with pytest.raises(InputError, match="a.json: " + ("no such file" if content is None else "not valid JSON")):
        read_json(target)


def test_folder_instead_of_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


@pytest.fixture(params=[0o022, 0o007, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    def private(path: Path) -> None:
        path.write_text("x")
        path.chmod(0o600)  # as safetensors leaves it

    with atomic_file(tmp_path / "file") as temporary:
        private(temporary)
    with atomic_directory(tmp_path / "folder") as temporary:
        private(temporary / "model.safetensors")
        (temporary / "sub").mkdir(0o700)
        private(temporary / "sub" / "file")
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in names(tmp_path)}
    assert modes == {
        name: (0o777 if name in ("folder", "folder/sub") else 0o666) & ~umask
        for name in ("file", "folder", "folder/model.safetensors", "folder/sub", "folder/sub/file")
    }


REPLACE = """
import sys
from patch.files.io import atomic_directory
with atomic_directory(sys.argv[1]) as temporary:
    (temporary / "new").write_text("new")
"""


def test_killed_replacement_leaves_one_whole_folder(tmp_path: Path) -> None:
    """Kill the process during the slow removal of a large old folder."""
    target = tmp_path / "folder"
    target.mkdir()
    old = {str(number) for number in range(20_000)}
    for name in old:
        (target / name).touch()
    process = subprocess.Popen([sys.executable, "-c", REPLACE, str(target)])
    while process.poll() is None and target.is_dir() and len(os.listdir(target)) == len(old):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert set(os.listdir(target)) in ({"new"}, old)


def test_replacement_where_folders_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def renameat2(self, *_: object) -> int:
            patch.files.io.ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(patch.files.io.ctypes, "CDLL", Library)
    for content in ("old", "new"):
        with atomic_directory(tmp_path / "folder") as temporary:
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["folder", "folder/new"]


@pytest.mark.parametrize(
    "text",
    [
        "[NaN]",
        "[Infinity]",
        "[-Infinity]",
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" + "1" * 5000 + "]",
        "[1e999]",
        '{"a":1,"a":2}',
    ],
    ids=["nan", "infinity", "minus", "deep list", "deep object", "long number", "large number", "key twice"],
)
def test_odd_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="a.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_checked_json(tmp_path: Path) -> None:
    path, value = tmp_path / "a.json", {"b": [1, 2.5, "\u00e9"], "a": None, "value": 0.1 + 0.2}
    write_checked_json(path, value)
    assert read_checked_json(path) == value
    text = path.read_text()
    path.write_text(text.replace("2.5", "2.6"))
    with pytest.raises(InputError, match="a.json: its contents do not match its checksum"):
        read_checked_json(path)
    write_json(path, value)
    with pytest.raises(InputError, match="a.json: it has no checksum"):
        read_checked_json(path)
    write_json(path, [1])
    with pytest.raises(InputError, match="a.json: it holds list"):
        read_checked_json(path)
