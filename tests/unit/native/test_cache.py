"""Cache of compiled libraries: private, verified before use, and compiled again if damaged."""

from __future__ import annotations

import ctypes
import logging
import os
import pwd
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from patch import native
from patch.errors import InputError
from patch.inference.backends import compiled
from patch.native import NoCompiler, build, library

PAGE = 4096


def damage(path: Path, how: str) -> None:
    """Change a cached library in place and keep its time of modification."""
    times, content = path.stat(), bytearray(path.read_bytes())
    if how == "half":
        content = content[: len(content) // 2]
    elif how == "no checksum":
        content = content[:-32]
    elif how == "zeroed page":
        content[PAGE : 2 * PAGE] = bytes(PAGE)
    elif how == "one bit":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray(how.encode())
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def in_child(check: Callable[[], bool]) -> int:
    """Return the wait status of a child process that runs a check: 0 if it holds, a signal after a crash."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("how", ["", "not a library", "half", "no checksum", "zeroed page", "one bit"])
def test_a_damaged_library_is_compiled_again(
    how: str, source: Path, counting: Callable, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = build(source)
    damage(made, how)
    assert in_child(lambda: library(source).number() == 42) == 0 and counting() == 2
    damage(made, how)
    assert library(source).number() == 42 and counting() == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{made} does not match its checksum: it is compiled again"
    ]
    assert library(source).number() == 42 and counting() == 3 and len(caplog.records) == 1


def test_a_library_under_the_name_of_another_is_compiled_again(source: Path, counting: Callable, cache: Path) -> None:
    build(source).write_bytes(build(source, ("-DNUMBER=7",)).read_bytes())
    assert library(source).number() == 42 and counting() == 3


def test_a_library_that_cannot_be_read_is_compiled_again(
    source: Path, counting: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, right = build(source), os.open

    def no_disk(path: str | Path, *given: int, **named: int) -> int:
        if Path(path).name == made.name:
            raise OSError(5, "Input/output error", str(path))
        return right(path, *given, **named)

    with monkeypatch.context() as broken:
        broken.setattr(os, "open", no_disk)
        assert library(source).number() == 42 and counting() == 2
    assert f"{made} cannot be read (Input/output error): it is compiled again" in caplog.text


def test_a_change_between_verification_and_loading_has_no_effect(
    source: Path, counting: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, right = build(source), ctypes.CDLL

    def late(path: str | None, *given: object, **named: object) -> ctypes.CDLL:
        damage(made, "zeroed page")
        return right(path, *given, **named)

    monkeypatch.setattr(ctypes, "CDLL", late)
    assert in_child(lambda: library(source).number() == 42) == 0 and counting() == 1


def test_a_loaded_library_outlives_its_file(source: Path, counting: Callable, cache: Path) -> None:
    build(source)

    def outlives() -> bool:
        loaded = library(source)
        damage(build(source), "")
        return loaded.number() == 42

    assert in_child(outlives) == 0


def test_libraries_of_one_process_are_distinguished(source: Path, counting: Callable, cache: Path) -> None:
    numbers = range(3, 9)
    loaded = [library(source, (f"-DNUMBER={number}",)) for number in numbers]
    assert [each.number() for each in loaded] == list(numbers)


def test_a_library_is_on_disk_before_it_is_in_place(
    source: Path, counting: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    for name in ("fsync", "replace"):
        right = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _n=name, _r=right, **k: (done.append(_n), _r(*a, **k))[1])
    build(source)
    assert done == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_write_that_fails_leaves_nothing(
    step: str, source: Path, counting: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(os, step)

    def full(*given: object, **named: object) -> int:
        if step == "open" and not given[1] & os.O_CREAT:
            return right(*given, **named)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, step, full)
        with pytest.raises(OSError, match=f"No space left on device: '{cache}/number-"):
            build(source)
    assert list(cache.iterdir()) == []


def test_new_folders_and_files_are_private(source: Path, counting: Callable, cache: Path) -> None:
    before = os.umask(0)
    try:
        made = build(source)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.stat().st_mode) & 0o022 == 0


@pytest.mark.parametrize("variable", ["PATCH_KERNEL_CACHE", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_can_write_is_refused(
    variable: str, mode: int, source: Path, counting: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PATCH_KERNEL_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "caches"))
    folder = build(source).parent
    folder.chmod(mode)
    for make in (build, library):
        with pytest.raises(InputError) as caught:
            make(source)
        assert str(caught.value) == (
            f"kernel cache {folder} (owner {os.geteuid()}, mode {mode:o}) can be written by others: "
            "set PATCH_KERNEL_CACHE to a new folder, or empty this one, own it and give it mode 700"
        )
    folder.chmod(0o755)
    assert library(source).number() == 42 and counting() == 1


def of_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Change the owner of a file or folder, or the user of this process; return the owner."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    return path.stat().st_uid


def test_a_folder_of_another_user_is_refused(
    source: Path, counting: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(source)
    owner = of_another(cache, monkeypatch)
    with pytest.raises(InputError, match=rf"{cache} \(owner {owner}, mode 700\) can be written by others"):
        library(source)


def test_a_folder_of_root_is_used(
    source: Path, counting: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(source)
    right = os.fstat

    def of_root(descriptor: int) -> os.stat_result:
        found = list(right(descriptor))
        found[stat.ST_UID] = 0
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", of_root)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert library(source).number() == 42 and counting() == 1


def test_a_library_that_others_could_have_written_is_compiled_again(
    source: Path, counting: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = build(source)
    made.chmod(0o666)
    assert library(source).number() == 42 and counting() == 2
    assert f"{made} can be written by others: it is compiled again" in caplog.text
    if os.geteuid() == 0:
        of_another(made, monkeypatch)
        assert library(source).number() == 42 and counting() == 3


def test_a_folder_that_takes_the_place_of_the_verified_one_is_not_read(cache: Path, tmp_path: Path) -> None:
    with native.Cache(cache) as verified:
        verified.keep("name", b"verified")
        cache.rename(tmp_path / "aside")
        with native.Cache(cache) as other:
            other.keep("name", b"planted")
        assert verified.read("name") == b"verified"


def test_without_a_home(source: Path, counting: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without `$HOME` and passwd entry, as in a container, has a private folder in temporary files."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for variable in ("HOME", "XDG_CACHE_HOME", "PATCH_KERNEL_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    folder = build(source).parent
    assert folder == tmp_path / f"patch-kernels-{os.geteuid()}" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert library(source).number() == 42 and counting() == 1
    folder.chmod(0o777)
    with pytest.raises(InputError, match="can be written by others"):
        library(source)


def test_slower_instructions_are_logged_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def old(instructions: str) -> ctypes.CDLL:
        if instructions != "portable":
            raise NoCompiler(f"c++: error: no {instructions} here")
        return ctypes.CDLL(None)

    monkeypatch.delenv("PATCH_INSTRUCTIONS", raising=False)
    monkeypatch.setattr(compiled, "available", lambda: ["amx", "avx2", "portable"])
    monkeypatch.setattr(compiled, "load", old)
    compiled._kernel.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert compiled._kernel()[0] == compiled._kernel()[0] == "portable"
    finally:
        compiled._kernel.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "packed weights are multiplied with portable instructions, slower than amx: c++: error: no amx here"
    ]
