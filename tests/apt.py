"""Programs that some tests need, installed with apt-get."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


class NotInstalled(Exception):
    """Error for packages that cannot be installed."""


def install(*packages: str) -> None:
    """Install Debian packages; processes take turns, since apt-get fails while another one works.

    Raises:
        NotInstalled: this user cannot install them, or apt-get fails.
    """
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NotInstalled(f"not installed: {' '.join(packages)}; on Debian or Ubuntu: apt-get install them")
    print(f"Installing {' '.join(packages)} with apt-get.", file=sys.stderr, flush=True)
    with open(Path(tempfile.gettempdir()) / "patch-tests-apt.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *packages)


def _apt_get(*arguments: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    run = subprocess.run(["apt-get", "--quiet", *arguments], env=environment, capture_output=True, text=True)
    if run.returncode:
        raise NotInstalled(f"apt-get {arguments[0]} failed:\n{(run.stdout + run.stderr)[-2000:]}")
