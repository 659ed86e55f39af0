"""Private folder of compiled libraries, each with a checksum that is verified before the library is used."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

from patch.errors import InputError

CACHE = "PATCH_KERNEL_CACHE"
log = logging.getLogger(__name__)


def default_folder() -> Path:
    """Return `$PATCH_KERNEL_CACHE`, else a folder in the user's caches or, without a home, in temporary files."""
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(chosen)
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no $HOME, and the system does not know the user
        return Path(tempfile.gettempdir()) / f"patch-kernels-{os.geteuid()}"
    return caches / "patch-kernels"


def _others_write(found: os.stat_result) -> bool:
    """Return whether a user other than this one and root owns or can write a file or folder."""
    return found.st_uid not in (0, os.geteuid()) or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _checksum(name: str, content: bytes) -> bytes:
    """Return the digest of a library and its name, so that a library under another one's name does not match."""
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


class Cache:
    """A cache folder, held open so that no other folder can take its place after its owner and mode were verified.

    Raises:
        InputError: others can write the folder.
        OSError: it cannot be created or opened.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(0o700, parents=True, exist_ok=True)
        self.path, self._folder = path, os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        found = os.fstat(self._folder)
        if _others_write(found):
            os.close(self._folder)
            raise InputError(
                f"kernel cache {path} (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}) can be written by "
                f"others: set {CACHE} to a new folder, or empty this one, own it and give it mode 700"
            )

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)

    def read(self, name: str) -> bytes | None:
        """Return a library; None if it is missing, or, with a warning in the log, if it cannot be trusted."""
        try:
            with open(name, "rb", opener=partial(os.open, dir_fd=self._folder)) as file:
                others, kept = _others_write(os.fstat(file.fileno())), file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        else:
            size = hashlib.sha256().digest_size
            content, checksum = kept[:-size], kept[-size:]
            if not others and checksum == _checksum(name, content):
                return content
            reason = "can be written by others" if others else "does not match its checksum"
        log.warning("%s %s: it is compiled again", self.path / name, reason)
        return None

    def keep(self, name: str, content: bytes) -> None:
        """Write a library, whole or not at all, with its checksum at the end, which loaders ignore."""
        temporary = f".{name}.{secrets.token_hex(8)}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            # Not writable by others, whatever the umask.
            with open(os.open(temporary, flags, 0o644, dir_fd=self._folder), "wb") as file:
                file.write(content + _checksum(name, content))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path / name)) from error
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._folder)
