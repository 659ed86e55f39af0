"""Training curves as files: one JSON object a line, with the step and the values measured at it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch.errors import InputError

# Beyond these, the limits of a plot's axis overflow.
LARGEST, LARGEST_INTEGER = 1e300, 2**63 - 1


@dataclass(frozen=True)
class Line:
    """Line of a curve: its text in the file and its values; None marks a gap."""

    step: int
    values: dict[str, float | None]
    text: str


def read_lines(path: Path | str) -> tuple[list[Line], str]:
    """Return the lines of a curve up to the first invalid one, with rising steps, and the fault of that one.

    Returns:
        The lines, none if there is no file, and the fault: file, line and reason; empty if there is none.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    lines: list[Line] = []
    for number, text in enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], 1):
        try:
            lines.append(_line(text, lines[-1].step if lines else -1))
        except (ValueError, RecursionError) as error:
            return lines, f"{path}, line {number}: {error}"
    return lines, ""


def _line(content: bytes, previous: int) -> Line:
    try:
        text = content.decode("utf-8")
        values = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON object of numbers ({str(error)[:200]})") from None
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__}; expected a JSON object of numbers")
    for key, value in values.items():
        if value is not None and not _is_number(value):
            raise ValueError(f"`{key[:40]}` is no number that can be drawn; expected a number or null")
    step = values.get("step")
    if not isinstance(step, int):
        raise ValueError("no number under the key `step`")
    if step <= previous:
        raise ValueError(f"step {step} does not come after step {previous}")
    return Line(step, values, text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice")
    return values


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        # NaN is drawn as a gap, like null.
        return not abs(value) > LARGEST
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INTEGER
