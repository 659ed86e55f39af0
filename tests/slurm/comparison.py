"""Comparison of the results of two runs of one experiment.

Two runs on the same processor have equal masks and therefore equal numbers, down to the loss of each sequence. Only
times, speeds and peak memory differ from run to run.
"""

from __future__ import annotations

import csv
from pathlib import Path

COMPARED = ("results.csv", "differences.csv", "tables/*.csv", "samples/*/*.json")
SPEEDS = ("tokens_per_second", "speedup")
# File -> columns that differ from run to run. All other columns and files are compared byte by byte.
MEASURED = {
    "results.csv": ("seconds", "peak_memory_mb"),
    "tables/speedup.csv": tuple(f"{name}{part}" for name in SPEEDS for part in ("", "_spread", "_noisy")),
}


def different_results(first: Path, second: Path) -> list[str]:
    """Return a line for each file that differs between two folders of results, or is missing from one of them.

    The measured columns count as equal if both folders have values in the same lines.
    """
    found = []
    for pattern in COMPARED:
        names = sorted({str(path.relative_to(folder)) for folder in (first, second) for path in folder.glob(pattern)})
        found += [] if names else [f"{pattern}: no such file"]
        for name in names:
            paths = first / name, second / name
            missing = [str(path) for path in paths if not path.exists()]
            difference = f"{missing[0]} is missing" if missing else _difference(*paths, MEASURED.get(name, ()))
            found += [f"{name}: {difference}"] if difference else []
    return found


def _difference(first: Path, second: Path, measured: tuple[str, ...]) -> str | None:
    """Return the first difference of two files, or None if they are equal except for the measured columns."""
    contents = first.read_bytes(), second.read_bytes()
    if contents[0] == contents[1]:
        return None
    if first.suffix != ".csv":
        return "the contents differ"
    (head, *rows), (other_head, *other_rows) = (list(csv.reader(text.decode().splitlines())) for text in contents)
    if head != other_head:
        return f"the columns are {head} and {other_head}"
    if len(rows) != len(other_rows):
        return f"{len(rows)} and {len(other_rows)} lines"
    for number, (row, other_row) in enumerate(zip(rows, other_rows, strict=True), start=2):
        if len(row) != len(other_row):
            return f"line {number} has {len(row)} and {len(other_row)} values"
        for column, value, other in zip(head, row, other_row, strict=False):
            if bool(value) != bool(other) if column in measured else value != other:
                return f"line {number}, {column}: {value!r} and {other!r}"
    # Such as other line ends.
    return None if measured else "the contents differ"
