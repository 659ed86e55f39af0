"""Formatting of quantities with units, of metrics, and of aligned plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tabulate import tabulate


def size(megabytes: float) -> str:
    """Return a size as text, rounded to the precision of an estimate: `40 MB`, `1.4 GB`, `1,200 GB`."""
    if megabytes < 1000:
        return f"{megabytes:.0f} MB"
    gigabytes = megabytes / 1000
    return f"{gigabytes:.1f} GB" if gigabytes < 100 else f"{gigabytes:,.0f} GB"


def duration(minutes: float) -> str:
    """Return a duration as text: `12 min`, `3 h 20 min`, `5 d 4 h`."""
    minutes = round(minutes)
    hours, days = minutes // 60, minutes // (24 * 60)
    if days:
        return f"{days} d {hours % 24} h"
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes} min"


def hours(value: float) -> str:
    """Return a number of hours as text: `0.3`, `5,210`."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1: `1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def metric_value(value: float, metric: str) -> str:
    """Return a value with two decimals, as in the paper; perplexities and tokens/s from 100 on have fewer."""
    large = metric in ("perplexity", "tokens_per_second")
    decimals = 2 if not large or abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:.{decimals}f}"


def aligned_lines(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Return rows as aligned lines of text: the columns ``left`` are left-aligned, the others are right-aligned."""
    alignment = ["left" if index in left else "right" for index in range(len(rows[0]))]
    text = tabulate(rows, tablefmt="plain", colalign=alignment, disable_numparse=True, preserve_whitespace=True)
    return [line.rstrip() for line in text.splitlines()]
