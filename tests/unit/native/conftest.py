"""Fixtures: a small source, a compiler that counts its calls, and a cache folder."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

REAL = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def write_program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def program() -> Callable[[Path, str], str]:
    """Return a function that writes a shell script as a program and returns its path."""
    return write_program


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a source whose function returns 42, or the number of a flag."""
    path = tmp_path / "number.cpp"
    path.write_text('#ifndef NUMBER\n#define NUMBER 42\n#endif\nextern "C" int number() { return NUMBER; }\n')
    return path


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Make `$CXX` the machine's compiler with a log; return a function that counts the compilations."""
    if REAL is None:
        pytest.skip("no C++ compiler")
    log, path = tmp_path / "log", os.environ["PATH"]
    text = f'[ "$1" = --version ] && echo 1.0 && exit\necho "$@" >> {log}\nPATH={path} exec {REAL} "$@"'
    monkeypatch.setenv("CXX", write_program(tmp_path / "counting-c++", text))
    return lambda: len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of cached libraries."""
    monkeypatch.setenv("PATCH_KERNEL_CACHE", str(tmp_path / "a/cache"))
    return tmp_path / "a/cache"
