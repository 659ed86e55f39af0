"""Tests of the formats of numbers and aligned text."""

from __future__ import annotations

import pytest

from patch.pipeline.reporting.units import aligned_lines, count, duration, hours, metric_value, size


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
    assert aligned_lines([["name", "n"], ["a", "100"]]) == ["name    n", "a     100"]
    assert aligned_lines([["name", "n "], ["a", "10*"]]) == ["name   n", "a     10*"]


def test_a_count_has_its_plural() -> None:
    assert [count(number, "run") for number in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


def test_decimals() -> None:
    assert metric_value(54.614, "accuracy") == "54.61"
    assert [metric_value(v, "perplexity") for v in (5.118, 765.92, 6734.97)] == ["5.12", "765.9", "6735"]
