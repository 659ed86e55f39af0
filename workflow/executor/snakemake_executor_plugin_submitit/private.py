"""Folders that only their owner can change: jobs execute pickles that lie there, and ledgers there name jobs."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError


def make_private(folder: Path) -> None:
    """Make a folder, mode 0700, and what is missing above it, where only this user can write; check it.

    Raises:
        WorkflowError: see `check_private`.
        OSError: it cannot be made.
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
        WorkflowError: others may have put files there, or still can.
        OSError: there is no such folder.
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
