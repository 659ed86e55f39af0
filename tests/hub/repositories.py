"""Repositories of the loopback hub on disk, and its refusals."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

TEXT = (".json", ".md", ".txt", ".yaml")


class Refusal(Exception):
    """Answer of the hub with an error status."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def account(token: str) -> str:
    """Return the name of an account, which is also that of its namespace."""
    return token.removeprefix("hf_")


def add_commit(repository: Path, files: dict[str, bytes]) -> str:
    """Write a commit with exactly these files, make it the newest of `main`, and return its name."""
    commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
    for name, content in files.items():
        path = repository / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (repository / "main").unlink(missing_ok=True)
    (repository / "main").symlink_to(commit)
    return commit


def entry(path: Path, commit: Path) -> dict[str, Any]:
    """Return the description of a file or folder in a listing."""
    name = str(path.relative_to(commit))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    found = {"type": "file", "path": name, "oid": digest(path), "size": path.stat().st_size}
    if path.suffix not in TEXT:
        found["lfs"] = {"oid": digest(path), "size": path.stat().st_size, "pointerSize": 134}
    return found


def digest(path: Path) -> str:
    """Return the name of a file's content: its git blob, or the checksum of a large file."""
    content = path.read_bytes()
    if path.suffix in TEXT:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return hashlib.sha256(content).hexdigest()
