"""Safe loading of untrusted `.npz` files: no unpickling, and a size limit on decompression."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from patch.errors import InputError

# Bytes of numpy's header before an array, at most.
_PREFIX = 1 << 14


class Archive:
    """Arrays of an untrusted npz file, each read on demand.

    Args:
        path: the file.
        where: name of the file in messages.

    Attributes:
        keys: name of each array -> its zip entry.

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
        """Return an array of at most ``most`` bytes; np.load would allocate any size that an entry declares.

        Raises:
            InputError: the entry is damaged, too large, pickled, or of an unsupported format.
        """
        entry, where = self.keys[key], f"{self.where}: {key}"
        if entry.file_size > most + _PREFIX:
            raise InputError(f"{where} unpacks to {entry.file_size} bytes, but {most} belong there; it is not read")
        # Other compressions do not bound the size of a decompressed block.
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
            data = file.read()  # the end of the file triggers the checksum test
            if len(data) != math.prod(shape) * dtype.itemsize:
                raise InputError(f"{where}: {len(data)} bytes of data do not make {dtype} of shape {list(shape)}")
            return np.frombuffer(data, dtype).reshape(shape)


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Convert any error about a damaged file to an InputError: zipfile, zlib and numpy raise many kinds."""
    try:
        yield
    except (InputError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{where}: truncated, damaged or not an npz file ({error})") from None
