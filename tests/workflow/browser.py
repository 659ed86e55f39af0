"""Headless Chromium, for pages that scripts build."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..apt import NotInstalled, install

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


def require_chromium() -> str:
    """Return the path of Chromium, installed if possible.

    Raises:
        NotInstalled: Chromium cannot be installed.
    """
    found = _which()
    if not found:
        install("chromium")
        found = _which()
    if not found:
        raise NotInstalled("apt-get has installed no Chromium that runs without snap")
    return found


def _which() -> str | None:
    return next((path for program in PROGRAMS if (path := shutil.which(program)) and _runs(path)), None)


def _runs(path: str) -> bool:
    """Return whether a program starts; Ubuntu's package is only a script that requires snap."""
    return subprocess.run([path, "--version"], capture_output=True).returncode == 0


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
