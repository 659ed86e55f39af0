"""Strict reading of CSV result files.

People open and edit these files, so they have no checksum. The reader detects wrong columns, lines of the wrong
length, a truncated last line, and values of the wrong type or out of range. It does not detect a valid number that
replaces another one.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from patch.errors import InputError
from patch.files.schema import check


class Row(BaseModel):
    """Base schema of a CSV line. Input values are text; an empty value is None."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


AnyRow = TypeVar("AnyRow", bound=Row)


def read_rows(path: Path | str, schema: type[AnyRow], what: str) -> list[AnyRow]:
    """Read and check a CSV file.

    Args:
        path: path of the file.
        schema: row schema; its fields are the expected columns, in order.
        what: description of the file's content, for error messages.

    Raises:
        InputError: the file is missing or truncated, has other columns, or has a value that the schema refuses.
    """
    columns = list(schema.model_fields)
    try:
        text = Path(path).read_bytes().decode()
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as {what} ({error})") from None
    if not lines or not text.endswith("\n"):
        raise InputError(f"{path}: cannot be read as {what} (truncated: its last line has no end)")
    if lines[0] != columns:
        raise InputError(f"{path}: columns are {repr(', '.join(lines[0])[:200])[1:-1]}; expected {', '.join(columns)}")
    rows = []
    for number, values in enumerate(lines[1:], start=2):
        where = f"{path}: not {what}: line {number}"
        if len(values) != len(columns):
            raise InputError(f"{where} has {len(values)} values; expected {len(columns)}")
        named = zip(columns, values, strict=True)
        rows.append(check(schema, {name: value if value else None for name, value in named}, where))
    return rows
