"""Test with hundreds of hostile configurations from `tests/fuzz/configs.py`."""

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from ....fuzz import configs

ROOT = Path(__file__).parents[4]
SECONDS = 8
AT_LEAST, AT_MOST = 60, 600


def test_every_configuration_is_planned_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + SECONDS
    for seed in range(AT_MOST):
        if seed >= AT_LEAST and time.monotonic() > end:
            break
        try:
            outcomes[configs.attack(random.Random(seed), tmp_path)] += 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert outcomes["planned"] > 3 and outcomes["refused"] > 30, outcomes
