"""Atomic writes and strict JSON; a killed process leaves no incomplete file under a final name."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patch.errors import InputError

CHECKSUM = "checksum"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_MODE_OF_FILES = 0o666


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there when the block succeeds.

    The file has the mode that the umask gives to new files.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
        yield temporary
        _fsync(temporary)
        # Some libraries write a private temporary file and rename it.
        temporary.chmod(mode)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, which replaces ``path`` when the block succeeds.

    The replacement is atomic where the filesystem can exchange folders.
    Files and folders have the modes that the umask gives.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    temporary.mkdir()
    try:
        yield temporary
        mode = temporary.stat().st_mode & 0o777
        for inside in temporary.rglob("*"):
            if not inside.is_symlink():
                inside.chmod(mode if inside.is_dir() else mode & _MODE_OF_FILES)
                _fsync(inside)
        _fsync(temporary)
        if path.exists():
            _exchange(temporary, path)
        else:
            temporary.replace(path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def own_directory(path: Path | str, what: str, is_earlier: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Replace a folder with `atomic_directory` if it is missing, empty, or an earlier output of the same kind.

    Args:
        path: the folder.
        what: name of the output in messages, such as `export`.
        is_earlier: function that returns whether an earlier call wrote a path in the folder; None to allow none.

    Raises:
        InputError: the folder holds other files, is the current folder, or is not a folder; nothing is changed.
    """
    path = Path(path)
    _check_own(path, what, is_earlier)
    with atomic_directory(path) as temporary:
        yield temporary
        # The folder may have changed during the block.
        _check_own(path, what, is_earlier)


def _check_own(path: Path, what: str, is_earlier: Callable[[Path], bool] | None) -> None:
    advice = "it would be replaced whole: name another, or remove it yourself"
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{what} to {path}: it is not a folder; {advice}")
    foreign = [inside.name for inside in path.iterdir() if is_earlier is None or not is_earlier(inside)]
    if foreign:
        raise InputError(f"{what} to {path}: it is not an empty folder, {min(foreign)} is in it; {advice}")
    if path.samefile(os.curdir):
        raise InputError(f"{what} to {path}: it is the current folder, which cannot be replaced; name another")


def _exchange(new: Path, old: Path) -> None:
    """Exchange two folders in one step; if the filesystem cannot, move the old one aside first.

    Raises:
        OSError: neither works; ``old`` stays in place.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 and not renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE):
        return
    code = ctypes.get_errno() if renameat2 else errno.ENOSYS
    if code not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), str(old))
    aside = old.with_name(f"{new.name}.old")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def parse_json(text: str | bytes, source: object) -> Any:
    """Parse standard JSON, without `NaN`, `Infinity` and duplicate keys.

    Args:
        text: a string, or bytes in UTF-8.
        source: the name of ``text`` in messages.

    Raises:
        InputError: the text is not valid JSON, is nested too deeply or has too large a number.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise InputError(f"{source}: not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise InputError(f"{source}: not valid JSON ({error})") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def read_bytes(path: Path | str, where: object, most: int = -1) -> bytes:
    """Read a file, up to ``most`` bytes if given.

    Raises:
        InputError: the file is missing or cannot be read; the message starts with ``where``.
    """
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror})") from None


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    return parse_json(read_bytes(path, path), path)


def read_json_object(path: Path | str) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        InputError: as `read_json`; or its value is not an object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: it holds {type(value).__name__}; expected a JSON object")
    return value


def write_json(path: Path | str, value: Any, indent: int | None = 1) -> None:
    """Write ``value`` as JSON atomically; without ``indent``, on one line."""
    text = json.dumps(value, indent=indent, separators=None if indent else (",", ":"), allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n")


def json_checksum(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_checked_json(path: Path | str, value: dict[str, Any], indent: int | None = 1) -> None:
    """Write a JSON object atomically, with the checksum of its contents under the key `checksum`."""
    write_json(path, {**value, CHECKSUM: json_checksum(value)}, indent)


def read_checked_json(path: Path | str) -> dict[str, Any]:
    """Read a file of `write_checked_json` and return its contents without the checksum.

    Raises:
        InputError: as `read_json_object`; or the contents do not match the checksum.
    """
    value = read_json_object(path)
    found = value.pop(CHECKSUM, None)
    if found is None:
        raise InputError(f"{path}: it has no checksum: not written by this version; make it again")
    if found != json_checksum(value):
        raise InputError(f"{path}: its contents do not match its checksum: damaged or edited; make it again")
    return value
