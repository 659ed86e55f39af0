"""Captions of figures. The report, the summary page and the documentation show the same text."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[3] / "workflow/report"


def caption(figure: str) -> str:
    """Return the caption of a figure as plain text, on one line."""
    return " ".join((FOLDER / f"{figure}.rst").read_text(encoding="utf-8").split())
