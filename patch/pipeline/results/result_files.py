"""Strict reading of result files: JSON files with a checksum, and CSV files without one.

People open and edit the CSV files. Their reader detects wrong columns, lines of the wrong length, a truncated last
line, and values of the wrong type or out of range. It does not detect a valid number that replaces another one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from patch.errors import InputError, listed
from patch.files.io import read_checked_json, write_checked_json
from patch.files.schema import Name, Schema, check
from patch.pipeline.runs.layout import digest
from patch.pipeline.runs.run import Run


class ResultFile(Schema):
    """Base schema of a JSON file with measured results.

    ``what`` describes the content in error messages, and ``indent`` is the indentation of the file.
    """

    what: ClassVar[str]
    indent: ClassVar[int | None] = 1

    schema_version: Literal[1] = Field(alias="schema")
    experiment: Name
    config_digest: Name

    @property
    def name(self) -> str:
        """Name of the measurement in the digests of a stage's settings."""
        raise NotImplementedError

    @classmethod
    def write(cls, path: Path | str, content: dict[str, Any]) -> None:
        """Check the content and write it atomically, with a checksum.

        Raises:
            InputError: ``content`` does not match the schema. Nothing is written.
        """
        check(cls, content, f"{path}: not {cls.what}")
        write_checked_json(path, content, indent=cls.indent)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read and check one file.

        Raises:
            InputError: the file is missing or damaged, or has other content. The one-line message names the key.
        """
        return check(cls, read_checked_json(path), f"{path}: not {cls.what}")

    @classmethod
    def read_current(cls, paths: Iterable[Path], digests: Mapping[str, str]) -> list[Self]:
        """Read files and verify that they match the settings of the configuration.

        Args:
            paths: paths of the files.
            digests: name of each measurement -> digest of its settings.

        Raises:
            InputError: `read` raises it, a file has other settings, or its name is not in ``digests``.
        """
        found = {path: cls.read(path) for path in paths}
        for path, result in found.items():
            if result.name not in digests:
                raise InputError(
                    f"{path}: results of `{result.name}`, which is not one of the {len(digests)} expected results"
                )
        stale = [str(path) for path, result in found.items() if digests[result.name] != result.config_digest]
        refuse_stale(stale, len(found))
        return list(found.values())


class RunFile(ResultFile):
    """Base schema of a file with results of one run."""

    run: Run

    @property
    def name(self) -> str:
        """Model and run, as `model/run`."""
        return f"{self.run.model}/{self.run.id}"


def refuse_stale(stale: Sequence[str], count: int) -> None:
    """Raise an error that names the stale results among ``count``, if there are any.

    Raises:
        InputError: ``stale`` is not empty.
    """
    if stale:
        raise InputError(
            f"{len(stale)} of {count} results were measured with other settings than this configuration's, and are not "
            f"used: {listed(stale)}; run `snakemake` again, or remove them"
        )


def joint_digest(digests: Iterable[str]) -> str:
    """Return one digest of several evaluation digests, independent of their order."""
    return digest(sorted(digests))


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
        raise InputError(f"{path}: cannot be read as {what} (truncated: the last line has no newline)")
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
