"""Headless Chromium, for pages that scripts build."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Pages must not need other hosts, even on a machine with a network.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class BrowserMissing(Exception):
    """Error for a Chromium that is missing and cannot be installed."""


def require_chromium() -> str:
    """Return the path of Chromium, installed if possible.

    Raises:
        BrowserMissing: Chromium cannot be installed.
    """
    found = _which()
    if not found:
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise BrowserMissing("Chromium is not installed; on Debian: apt-get install chromium")
        print("Installing chromium with apt-get.", file=sys.stderr, flush=True)
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", "chromium")
        found = _which()
    if not found:
        raise BrowserMissing("apt-get has installed no Chromium that runs without snap")
    return found


def _which() -> str | None:
    return next((path for program in PROGRAMS if (path := shutil.which(program)) and _runs(path)), None)


def _runs(path: str) -> bool:
    """Return whether a program starts; Ubuntu's package is only a script that requires snap."""
    return subprocess.run([path, "--version"], capture_output=True).returncode == 0


def _apt_get(*arguments: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    run = subprocess.run(["apt-get", "--quiet", *arguments], env=environment, capture_output=True, text=True)
    if run.returncode:
        raise BrowserMissing(f"apt-get {arguments[0]} failed:\n{(run.stdout + run.stderr)[-2000:]}")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder and return its address: over HTTP, unlike from files, a page may read its frames."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class' name
        """Log nothing."""


def dump(program: str, address: str, profile: Path, size: str = "1400,1000", budget_s: int = 60) -> str:
    """Return the document at an address after its scripts ran for ``budget_s`` seconds of virtual time."""
    own = [f"--user-data-dir={profile}", f"--window-size={size}", f"--virtual-time-budget={1000 * budget_s}"]
    run = subprocess.run([program, *OPTIONS, *own, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    if run.returncode:
        raise RuntimeError(f"{program} ended with {run.returncode}:\n{run.stderr[-2000:]}")
    return run.stdout
