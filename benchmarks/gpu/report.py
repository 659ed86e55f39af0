"""The file with the measurements of one card, which is written after each of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from patch.errors import InputError
from patch.files.io import atomic_file, read_json_object
from patch.settings import Section, validate

SCHEMA = 1
REHEARSAL = "gpu-rehearsal.json"


class Quartiles(Section):
    """Median of a quantity, and its quartiles."""

    median: float
    low: float
    high: float


class Timed(Section):
    """One candidate: its quantities by name, those that are noisy after ``rounds`` rounds, and other facts."""

    quantities: dict[str, Quartiles]
    noisy: list[str]
    rounds: int
    facts: dict[str, float] = {}


class Result(Section):
    """Result of one measurement.

    Attributes:
        timed: Candidate -> its times.
        values: Other numbers, such as the number of failed tests.
        notes: Candidate or subject -> text, such as the reason why it was not measured.
    """

    timed: dict[str, Timed] = {}
    values: dict[str, float] = {}
    notes: dict[str, str] = {}


class Entry(Section):
    """A finished measurement; ``software`` names versions and commit."""

    result: Result
    seconds: float
    software: str


class Card(Section):
    """The device; ``device`` is `cuda`, or `cpu` for a rehearsal."""

    name: str
    device: str
    memory_gb: float
    facts: dict[str, str]


class Report(Section):
    """All measurements of one card.

    Attributes:
        card: The device.
        results: Measurement, as `step/name`, -> its result.
        not_measured: Measurement -> the reason.
        running: Measurement in progress, or None.
        seconds: Duration of all runs together.
    """

    version: int = SCHEMA
    card: Card
    results: dict[str, Entry] = {}
    not_measured: dict[str, str] = {}
    running: str | None = None
    seconds: float = 0.0

    @property
    def rehearsal(self) -> bool:
        """Return whether the numbers are of a CPU, which no page of the project may show."""
        return self.card.device != "cuda"


def file_name(card: Card) -> str:
    """Return the name of a card's file."""
    if card.device != "cuda":
        return REHEARSAL
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.name.lower()).strip('-')}.json"


def read_report(path: Path) -> Report:
    """Read a report.

    Raises:
        InputError: The file is missing, is not JSON, or has another schema.
    """
    raw = read_json_object(path)
    if raw.get("version") != SCHEMA:
        raise InputError(f"{path} has the version {raw.get('version')!r}; this program writes {SCHEMA}; move it away")
    try:
        return validate(Report, raw)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def write_report(path: Path, report: Report) -> None:
    """Write a report atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(report.model_dump(mode="json"), indent=1) + "\n")


def update(path: Path, **changes: Any) -> Report:
    """Change fields of a report on disk, and return it."""
    report = read_report(path).model_copy(update=changes)
    write_report(path, report)
    return report


def finish(path: Path, name: str, entry: Entry | None, reason: str | None = None) -> Report:
    """Store the result of a measurement, or the reason why it has none."""
    report = read_report(path)
    left = {key: why for key, why in report.not_measured.items() if key != name}
    results = report.results | ({name: entry} if entry else {})
    return update(path, results=results, not_measured=left | ({name: reason} if reason else {}), running=None)


class NotMeasuredError(Exception):
    """A measurement is impossible here; the message is the reason."""
