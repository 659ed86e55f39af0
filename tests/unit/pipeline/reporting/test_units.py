"""Numbers as the terminal shows them."""

from __future__ import annotations

import pytest

from patch.pipeline.reporting.units import align, duration, hours, size


@pytest.mark.parametrize(
    ("megabytes", "text"), [(0, "0 MB"), (0.4, "0 MB"), (999, "999 MB"), (1440, "1.4 GB"), (1_234_567, "1,235 GB")]
)
def test_size(megabytes: float, text: str) -> None:
    assert size(megabytes) == text


@pytest.mark.parametrize(
    ("minutes", "text"),
    [(0, "0 min"), (59, "59 min"), (60, "1 h 00 min"), (205, "3 h 25 min"), (1440, "1 d 0 h"), (7500, "5 d 5 h")],
)
def test_duration(minutes: float, text: str) -> None:
    assert duration(minutes) == text


def test_hours() -> None:
    assert (hours(0.25), hours(99.94), hours(5210.4)) == ("0.2", "99.9", "5,210")


def test_columns_stand_below_each_other() -> None:
    assert align([["name", "n"], ["a", "100"]]) == ["name    n", "a     100"]
