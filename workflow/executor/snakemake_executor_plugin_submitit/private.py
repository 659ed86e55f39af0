"""Private folders: only their owner can write to them, because jobs execute pickles from there."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError


def make_private(folder: Path) -> None:
    """Create a folder with mode 0700 and its missing parents, and check that only this user can write to them.

    Raises:
        WorkflowError: see `check_private`.
        OSError: the folder cannot be created.
    """
    for missing in reversed([parent for parent in folder.parents if not parent.exists()]):
        with contextlib.suppress(FileExistsError):
            missing.mkdir(mode=0o755)
        check_private(missing)
    folder.mkdir(mode=0o700, exist_ok=True)
    check_private(folder)


def check_private(folder: Path) -> None:
    """Check that a folder belongs to this user and that nobody else can write there.

    Raises:
        WorkflowError: other users own the folder or can write to it.
        OSError: the folder does not exist.
    """
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise WorkflowError(
            f"{folder} belongs to {_user(status.st_uid)} and has mode {mode:04o}; it must belong to "
            f"{_user(os.geteuid())} and be writable by nobody else, as mode 0700 is: jobs execute pickles that lie "
            "there. Others may have changed what it holds: remove it, or name another folder with --submitit-folder."
        )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
