"""Documents of the sources that need no download: installed packages and local files."""

from __future__ import annotations

import glob
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from patch.data.corpus_settings import FilesSource, PackageSource
from patch.errors import InputError

# Characters of a document, at most. All Psalms of the King James text are one line of 227,000 characters, 5 % of the
# book, which would unbalance its split.
LONGEST = 10_000
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def package_documents(source: PackageSource) -> Iterator[str]:
    """Return the lines of a string in an installed package.

    Raises:
        InputError: the package, the module or the attribute is missing, or is not a string.
    """
    problem = f"corpus `text` is {source.text!r}"
    if not all(source.text.partition(":")):
        raise InputError(f"{problem}; expected `module:attribute.path`")
    try:
        value = pkgutil.resolve_name(source.text)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{problem} but there is no module `{error.name}`; `pip install {source.distribution}` or correct the name"
        ) from None
    except (ValueError, AttributeError) as error:
        raise InputError(f"{problem}: {error}; expected `module:attribute.path`") from None
    if not isinstance(value, str):
        raise InputError(f"{problem}, which is a {type(value).__name__}; expected a string")
    return _cut(value.splitlines())


def file_documents(path: Path, field: str) -> Iterator[str]:
    """Yield the paragraphs of a `.txt` file, or the values of ``field`` in the lines of a `.jsonl` file.

    Raises:
        InputError: the file is of another kind or not UTF-8, or a line is not JSON or lacks the string.
    """
    readers = {".txt": lambda: _cut(_paragraphs(path)), ".jsonl": lambda: _json_lines(path, field)}
    if path.suffix not in readers:
        raise InputError(
            f"corpus file {path}: cannot read {path.suffix or 'a file without ending'}; use .txt or .jsonl"
        )
    try:
        yield from readers[path.suffix]()
    except UnicodeDecodeError as error:
        raise InputError(f"corpus file {path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def expand(patterns: list[str]) -> list[Path]:
    """Return the distinct files of paths and globs, in the order of ``patterns`` and sorted within each.

    Raises:
        InputError: a pattern matches no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
        if not files:
            raise InputError(f"corpus `files` names {pattern!r}, which matches no file; give a path or a glob")
        found.update(dict.fromkeys(files))
    return list(found)


def files_by_part(source: FilesSource) -> dict[str, list[Path]]:
    """Return the files of each split of a source whose `files` is a mapping.

    Raises:
        InputError: a pattern matches no file, or a file is in two splits.
    """
    assert isinstance(source.files, dict)
    parts = {split: expand(patterns) for split, patterns in source.files.items()}
    parts_by_file: dict[Path, str] = {}
    for split, files in parts.items():
        for file in files:
            other = parts_by_file.setdefault(file.resolve(), split)
            if other != split:
                raise InputError(f"corpus file {file} is in the splits `{other}` and `{split}`; leave it in one")
    return parts


def clean(documents: Iterable[str], remove: str = "") -> Iterator[str]:
    """Delete the characters ``remove``, collapse whitespace into single spaces, and skip empty documents."""
    table = str.maketrans("", "", remove)
    for document in documents:
        # JSON can escape half a surrogate pair, which UTF-8 cannot encode.
        valid = document.encode("utf-8", "ignore").decode("utf-8")
        text = " ".join(valid.translate(table).split())
        if text:
            yield text


def _paragraphs(path: Path) -> Iterator[str]:
    lines: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                lines.append(line)
            else:
                yield "".join(lines)
                lines.clear()
    yield "".join(lines)


def _json_lines(path: Path, field: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"corpus file {path}, line {number}: not JSON ({error.msg})") from None
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                known = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise InputError(
                    f"corpus file {path}, line {number}: no string under `field` {field!r}; it has: {known}"
                )
            yield record[field]


def _cut(documents: Iterable[str]) -> Iterator[str]:
    """Split documents of more than ``LONGEST`` characters between sentences; a longer sentence stays whole."""
    for document in documents:
        if len(document) <= LONGEST:
            yield document
            continue
        piece: list[str] = []
        for sentence in _SENTENCE_END.split(document):
            if piece and sum(map(len, piece)) + len(piece) + len(sentence) > LONGEST:
                yield " ".join(piece)
                piece = []
            piece.append(sentence)
        yield " ".join(piece)
