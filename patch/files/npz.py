"""npz files of others, read without trust: nothing is unpickled, or unpacked to more than belongs there."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from patch.errors import InputError

# Bytes that numpy at most puts before an array.
_PREFIX = 1 << 14


class Archive:
    """The arrays of an npz file that others may have made, each read when it is asked for.

    Args:
        path: the file.
        where: what messages call it.

    Attributes:
        keys: names of the arrays -> their entries.

    Raises:
        InputError: the file is missing, damaged, or names an array twice.
    """

    def __init__(self, path: Path | str, where: str) -> None:
        self.where = where
        try:
            with _damage(self.where):
                self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise InputError(f"{self.where}: no such file") from None
        entries = self._zip.infolist()
        self.keys = {entry.filename.removesuffix(".npy"): entry for entry in entries}
        if len(self.keys) < len(entries):
            self._zip.close()
            raise InputError(f"{self.where}: it has {len(entries)} entries, but {len(self.keys)} keys; make it again")

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, key: str, most: int) -> np.ndarray:
        """An array of at most ``most`` bytes. np.load would take room for as much as an entry says that it is."""
        entry, where = self.keys[key], f"{self.where}: {key}"
        if entry.file_size > most + _PREFIX:
            raise InputError(f"{where} unpacks to {entry.file_size} bytes, but {most} belong there; it is not read")
        # The other compressions give no limit to what one block unpacks to.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{where}: compressed by method {entry.compress_type}; an npz file uses 0 or 8 (deflate)")
        with _damage(where), self._zip.open(entry) as file:
            version = np.lib.format.read_magic(file)
            header = getattr(np.lib.format, "read_array_header_{}_{}".format(*version), None)
            if header is None:
                raise InputError(f"{where}: .npy version {version} is not known; np.savez writes (1, 0)")
            shape, _, dtype = header(file)
            if dtype.hasobject:
                raise InputError(f"{where}: refused; it holds pickled objects, which can run code when they are read")
            data = file.read()  # to its end, where the checksum is compared
            if len(data) != math.prod(shape) * dtype.itemsize:
                raise InputError(f"{where}: {len(data)} bytes of data do not make {dtype} of shape {list(shape)}")
            return np.frombuffer(data, dtype).reshape(shape)


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """What zipfile, zlib and numpy say of a damaged file becomes an InputError; a list of it would not be complete."""
    try:
        yield
    except (InputError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{where}: truncated, damaged or not an npz file ({error})") from None
