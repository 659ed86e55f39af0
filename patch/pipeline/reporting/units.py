"""Formatting of quantities with units and of aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


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


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines: the first column left-aligned, the others right-aligned, two spaces between columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
