"""Fake SLURM commands as shell scripts, so that no test here needs a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "executor",
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("executor")


class Commands:
    """Shell scripts in a folder; each logs its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, script: str = "") -> None:
        """Add a command; `$CALLS` in its script is the number of its calls, including this one."""
        log, path = self.folder / f"{name}.calls", self.folder / name
        path.unlink(missing_ok=True)
        path.write_text(
            f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "$*" >> {log}\nCALLS=$(grep -c "" {log})\n{script}\n', "utf-8"
        )
        path.chmod(0o755)

    def print(self, name: str, text: str) -> None:
        """Add a command that prints a text."""
        (self.folder / f"{name}.text").write_text(text)
        self.add(name, f"cat {self.folder}/{name}.text")

    def fail(self, name: str, words: str) -> None:
        """Add a command that fails with a message."""
        (self.folder / f"{name}.text").write_text(words + "\n")
        self.add(name, f"cat {self.folder}/{name}.text >&2; exit 1")

    def calls(self, name: str) -> list[str]:
        """Return the arguments of each call."""
        log = self.folder / f"{name}.calls"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Fake commands, with nothing else on PATH: a command that a test does not add is missing."""
    made = Commands(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(made.folder))
    return made


@pytest.fixture
def running() -> Callable[[int], bool]:
    """Return a function that returns whether a process still runs."""

    def look(process: int) -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return look


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Return a function that waits until a condition holds."""

    def wait(holds: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it does not happen"
            time.sleep(0.01)

    return wait
