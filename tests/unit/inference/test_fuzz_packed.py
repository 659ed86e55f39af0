"""Seeded attacks on folders of packed models; `python -m tests.fuzz` runs more."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from ...fuzz import packed

SECONDS, LEAST, MOST = 10, 24, 400


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    packed.originals()
    return packed


def test_changed_folders_are_refused_or_the_same_model(fuzz: ModuleType, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    begin = time.monotonic()
    for seed in range(MOST):
        if seed >= LEAST and time.monotonic() - begin > SECONDS:
            break
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcomes[fuzz.attack(random.Random(seed), folder).rpartition(": ")[2]] += 1
    assert outcomes["refused"] > LEAST // 2 and set(outcomes) <= {"refused", "same", "another model", "refused at use"}


def test_a_signal_and_another_exception_are_faults(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, answer in (("a", ("ended", "with the exit code -11")), ("b", ("not an InputError", "KeyError: 'a'"))):
        monkeypatch.setattr(fuzz.Reader, "ask", lambda *_, answer=answer: answer)
        (tmp_path / name).mkdir()
        with pytest.raises(AssertionError, match=answer[1]):
            fuzz.attack(random.Random(0), tmp_path / name)
    monkeypatch.undo()
    monkeypatch.setattr(fuzz.select, "select", lambda *_: ([], [], []))
    (tmp_path / "c").mkdir()
    with pytest.raises(AssertionError, match="ended: with the exit code -9"):
        fuzz.attack(random.Random(0), tmp_path / "c")
