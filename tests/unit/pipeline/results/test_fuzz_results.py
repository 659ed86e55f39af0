"""Hundreds of damaged result files are refused or keep their meaning; see `tests/fuzz/results.py`."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from ....fuzz.results import KINDS, attack


def test_damaged_files_are_refused_or_mean_the_same(tmp_path: Path) -> None:
    rng = random.Random(0)
    ends = Counter(attack(rng, tmp_path) for _ in range(150))
    assert all(ends[f"{name}: refused"] >= 5 for name in KINDS), ends
