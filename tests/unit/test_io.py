"""Atomic writes leave the old thing or the new one, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from patch.errors import InputError
from patch.io import atomic_directory, atomic_file, read_json, write_json


class Boom(BaseException):
    """Not an `Exception`: like a signal, it passes every `except Exception`."""


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
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Boom])
@pytest.mark.parametrize("before", [None, "old"])
def test_failed_file_leaves_what_was_there(tmp_path: Path, error: type[BaseException], before: str | None) -> None:
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


def test_directory_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_directory(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "new").write_text("new")
        assert names(target) == ["old"]
    assert names(tmp_path) == ["folder", "folder/sub", "folder/sub/new"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Boom])
@pytest.mark.parametrize("before", [False, True])
def test_failed_directory_leaves_what_was_there(tmp_path: Path, error: type[BaseException], before: bool) -> None:
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
