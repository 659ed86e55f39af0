"""Safe loading of untrusted `.npz` files: no unpickling, and a size limit on decompression."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from patch.errors import InputError

# Limit on the bytes of numpy's header before an array.
_HEADER_BYTES = 1 << 14


class Archive(zipfile.ZipFile):
    """Untrusted `.npz` file whose arrays are loaded on demand.

    Args:
        path: the file.
        where: name of the file in messages.

    Attributes:
        keys: name of each array -> its zip entry.

    Raises:
        InputError: the file is missing or damaged, or has a duplicate key.
    """

    def __init__(self, path: Path | str, where: str) -> None:
        self.where = where
        with _damage(where):
            super().__init__(path)
        entries = self.infolist()
        self.keys = {entry.filename.removesuffix(".npy"): entry for entry in entries}
        if len(self.keys) < len(entries):
            self.close()
            raise InputError(f"{where}: it has {len(entries)} entries, but {len(self.keys)} keys; make it again")

    def load(self, key: str, most: int) -> np.ndarray:
        """Return an array of at most ``most`` bytes.

        Raises:
            InputError: the entry is damaged, too large, pickled, or compressed by another method than deflate.
        """
        entry, where = self.keys[key], f"{self.where}: {key}"
        if entry.file_size > most + _HEADER_BYTES:
            raise InputError(f"{where} unpacks to {entry.file_size} bytes, but {most} belong there; it is not read")
        # Other compressions do not bound the size of a decompressed block.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{where}: compressed by method {entry.compress_type}; an npz file uses 0 or 8 (deflate)")
        with _damage(where), self.open(entry) as file:
            # With a bound, because the directory may declare a smaller size than the entry unpacks to.
            content = io.BytesIO(file.read(most + _HEADER_BYTES))
            array = np.lib.format.read_array(content, allow_pickle=False)
            if content.read(1):
                raise ValueError(f"more data than {array.dtype} of shape {list(array.shape)} needs")
        return array


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Convert any error about a damaged file to an InputError: zipfile, zlib and numpy raise many kinds.

    An array of a huge declared shape raises a MemoryError before it is filled.
    """
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except Exception as error:
        raise InputError(f"{where}: truncated, damaged, pickled or not an npz file ({error})") from None
