"""Builds of C++ libraries: one for each source, flags, compiler and processor, or a reason why there is none."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from patch import native
from patch.native import FLAGS, NoCompiler, build, library, processor

REAL = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
needs_compiler = pytest.mark.skipif(REAL is None, reason="no C++ compiler")


def number(path: Path) -> int:
    return ctypes.CDLL(str(path)).number()


def test_a_library_is_built_once(source: Path, counting: Callable, cache: Path) -> None:
    made = build(source)
    assert number(made) == 42 and made.parent == cache and made.name.startswith("number-") and counting() == 1
    before = made.stat()
    assert build(source) == made and library(source).number() == 42 and counting() == 1
    assert made.stat().st_mtime_ns == before.st_mtime_ns
    assert list(cache.iterdir()) == [made], "nothing but the library is left"


def test_flags_reach_the_compiler(source: Path, counting: Callable, cache: Path, tmp_path: Path) -> None:
    made = build(source, ("-DNUMBER=7",))
    assert number(made) == 7 and library(source, ("-DNUMBER=8",)).number() == 8
    first = (tmp_path / "log").read_text().splitlines()[0].split()
    assert first[: len(FLAGS) + 2] == [*FLAGS, "-DNUMBER=7", str(source)]


def test_a_library_of_something_else_is_not_used(
    source: Path, counting: Callable, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other flags, or their order, and another source, header, compiler or processor give another library."""
    libraries = [build(source), build(source, ("-g", "-DA")), build(source, ("-DA", "-g")), build(source, ("-g",))]
    text = source.read_text()
    source.write_text(text.replace("42", "43"))
    libraries.append(build(source))
    assert number(libraries[-1]) == 43
    source.write_text(text)
    with monkeypatch.context() as changed:
        changed.setattr(native, "processor", lambda: frozenset(["another"]))
        libraries.append(build(source))
    with monkeypatch.context() as changed:
        changed.setattr(native, "FLAGS", (*FLAGS, "-g0"))
        libraries.append(build(source))
    (tmp_path / "counting-c++").write_text((tmp_path / "counting-c++").read_text().replace("1.0", "1.1"))
    libraries.append(build(source))
    shutil.copy(tmp_path / "counting-c++", tmp_path / "other-c++")
    monkeypatch.setenv("CXX", str(tmp_path / "other-c++"))
    libraries.append(build(source))
    header = source.with_name("sizes.h")
    header.write_text("// Of this source.")
    libraries.append(build(source))
    header.write_text("// Of another.")
    libraries.append(build(source))
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "numbers.h").write_text("constexpr int SHARED = 44;")
    with monkeypatch.context() as changed:
        changed.setattr(native, "INCLUDE", shared)
        libraries.append(build(source))
        (shared / "numbers.h").write_text("constexpr int SHARED = 45;")
        source.write_text('#include "numbers.h"\n' + text.replace("42", "SHARED"))
        assert number(build(source)) == 45
        source.write_text(text)
    assert len(set(libraries)) == 12 and counting() == 13
    other = source.with_name("other.cpp")
    other.write_text(text)
    assert build(other).name.startswith("other-")


def test_where_libraries_are_kept(
    source: Path, counting: Callable, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = build(source).name
    monkeypatch.setenv("PATCH_KERNEL_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build(source) == tmp_path / "xdg/patch-kernels" / name
    monkeypatch.delenv("PATCH_KERNEL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build(source) == tmp_path / "home/.cache/patch-kernels" / name
    assert counting() == 3


def test_without_a_compiler(source: Path, empty_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for compiler in (None, "/nowhere/c++", ""):
        if compiler is not None:
            monkeypatch.setenv("CXX", compiler)
        for make in (build, library):
            with pytest.raises(NoCompiler) as caught:
                make(source)
            assert str(caught.value) == "no C++ compiler (c++, g++ or clang++)"
    assert not cache.exists()


def test_each_compiler_that_fails_is_quoted(
    source: Path, program: Callable, empty_path: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(empty_path / "c++", 'echo "c++: error: no -mavx here" >&2\necho second >&2\nexit 1')
    program(empty_path / "clang++", "exit 1")
    monkeypatch.setenv("CXX", program(tmp_path / "mine", "echo internal trouble >&2; exit 4"))
    with pytest.raises(NoCompiler) as caught:
        build(source)
    assert str(caught.value) == f"{tmp_path}/mine: internal trouble; c++: c++: error: no -mavx here; clang++: failed"
    assert list(cache.iterdir()) == []


@needs_compiler
def test_a_source_or_flag_that_the_compiler_does_not_know(source: Path, cache: Path) -> None:
    with pytest.raises(NoCompiler, match="-mno-such-thing"):
        build(source, ("-mno-such-thing",))
    source.write_text("extern int here is no C++;\n")
    with pytest.raises(NoCompiler, match=r"number\.cpp:1:"):
        build(source)
    assert list(cache.iterdir()) == []


def test_the_next_compiler_is_tried(
    source: Path, program: Callable, counting: Callable, empty_path: Path, cache: Path
) -> None:
    # `empty_path` unsets `$CXX`.
    (empty_path.parent / "counting-c++").rename(empty_path / "g++")
    program(empty_path / "c++", "exit 1")
    assert number(build(source)) == 42 and counting() == 1


def test_half_a_library_is_not_kept(source: Path, program: Callable, empty_path: Path, cache: Path) -> None:
    copy = 'while [ "$1" != -o ]; do shift; done; echo half > "$2"; exit 1'
    program(empty_path / "c++", f'[ "$1" = --version ] && exit\n{copy}')
    with pytest.raises(NoCompiler):
        build(source)
    assert list(cache.iterdir()) == []


@needs_compiler
def test_a_folder_that_cannot_be_made(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCH_KERNEL_CACHE", str(tmp_path / "file/cache"))
    for make in (build, library):
        with pytest.raises(OSError, match=r"Not a directory: .*file/cache"):
            make(source)


def test_messages_in_any_encoding(
    source: Path, program: Callable, empty_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = r"""if [ "$1" = --version ]; then printf '\377 1.0'; exit; fi; printf 'error: \351\n' >&2; exit 1"""
    program(empty_path / "c++", text)
    with pytest.raises(NoCompiler) as caught:
        build(source)
    assert str(caught.value) == "c++: error: \N{REPLACEMENT CHARACTER}"


MAKES = '#!/bin/sh\n[ "$1" = --version ] && exit\nfor last; do :; done; {} "$last"\n'
USELESS = {
    "makes nothing": ("#!/bin/true\n", "made no library"),
    "makes an empty file": (MAKES.format(": >"), "file too short"),
    "makes no library": (MAKES.format("echo text >"), "file too short"),
    "cannot be run": ("\0\1\2\3", "Exec format error"),
}


@pytest.mark.parametrize("useless", USELESS)
def test_the_next_compiler_is_tried_after_a_useless_one(
    useless: str, source: Path, counting: Callable, empty_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, reason = USELESS[useless]
    mine = empty_path.parent / "mine"
    mine.write_text(text)
    mine.chmod(0o755)
    monkeypatch.setenv("CXX", str(mine))
    with pytest.raises(NoCompiler) as caught:
        library(source)
    assert str(caught.value).startswith(f"{mine}: ") and reason in str(caught.value)
    assert list(cache.iterdir()) == [], "nothing that cannot be loaded is kept"
    (empty_path.parent / "counting-c++").rename(empty_path / "g++")
    assert library(source).number() == 42 and counting() == 1


def test_a_system_that_cannot_load_from_memory(
    source: Path, counting: Callable, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "MEMORY_FILE", "no_such_function")
    with pytest.raises(NoCompiler, match="only Linux loads libraries from memory"):
        library(source)


def test_processes_that_build_at_the_same_time(source: Path, counting: Callable, cache: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "counting-c++"
    compiler.write_text(compiler.read_text().replace("PATH=", "sleep 0.3\nPATH=", 1))
    pids = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            try:
                os._exit(0 if number(build(source)) == 42 else 1)
            finally:
                os._exit(2)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert counting() > 1, "they must have met"
    assert list(cache.iterdir()) == [build(source)]


def test_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = processor.__wrapped__  # without the cache
    monkeypatch.setattr(Path, "read_text", lambda _: "model: A\nflags\t\t: fpu amx_tile\nflags\t\t: other\n")
    assert asked() >= {"fpu", "amx_tile"} and not asked() & {"other", "A"}
    monkeypatch.setattr(Path, "read_text", lambda _: "Features\t: asimd bf16\n")
    assert asked() >= {"asimd", "bf16"}
    monkeypatch.setattr(Path, "read_text", lambda _: "nothing of it")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "a machine")
    assert asked() == {"a machine"}
