"""The submit folder: permissions, location and the folders of runs in it.

Only their owner can write to these folders, because jobs execute pickles from there.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import stat
from pathlib import Path

from snakemake_interface_common.exceptions import WorkflowError

# Filesystems and folders that compute nodes cannot share.
LOCAL_FILESYSTEMS = {"tmpfs", "ramfs", "devtmpfs"}
LOCAL_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def check_folder(folder: Path) -> list[str]:
    """Create the submit folder and return warnings about its location.

    Raises:
        WorkflowError: the folder cannot be created, belongs to another user, or is writable by other users.
    """
    try:
        make_private(folder)
    except OSError as error:
        raise WorkflowError(
            f"The submit folder {folder} cannot be used ({error.strerror}). It holds pickles that jobs execute and "
            "must be yours alone: name another with --submitit-folder."
        ) from None
    kind = _filesystem(folder)
    if kind in LOCAL_FILESYSTEMS or any(folder.is_relative_to(place) for place in LOCAL_FOLDERS):
        place = kind if kind in LOCAL_FILESYSTEMS else "a local folder"
        return [f"The submit folder {folder} is on {place}; compute nodes must see it."]
    return []


def _filesystem(folder: Path) -> str:
    """Return the type of the filesystem that holds a folder."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    fitting = [(len(place), kind) for place, kind in mounts if folder.is_relative_to(place)]
    return max(fitting)[1] if fitting else ""


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
            "there. Others may have changed its content: remove it, or name another folder with --submitit-folder."
        )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def list_runs(folder: Path) -> list[Path]:
    """Return the folders of all runs, oldest first; names have six digits up to a million runs."""
    paths = (path for path in folder.glob("[0-9]*") if re.fullmatch("[0-9]{6,9}", path.name))
    return sorted((path for path in paths if path.is_dir() and not path.is_symlink()), key=lambda path: int(path.name))


def make_run(folder: Path) -> Path:
    """Create a folder of a run that sorts after all others, independent of the clock."""
    number = max((int(run.name) for run in list_runs(folder)), default=0)
    while True:
        number += 1
        run = folder / f"{number:06d}"
        with contextlib.suppress(FileExistsError):  # another Snakemake was faster
            run.mkdir(mode=0o700)
            return run
