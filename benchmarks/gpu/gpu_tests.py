"""The tests that need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.report import NotMeasuredError, Result
from benchmarks.gpu.sizes import ROOT, Sizes

NAME = "tests"
SECONDS = 300
REQUIRES = ("pytest", "hypothesis")
MARK = "pytest.mark.gpu"
# Most failures that are listed by name.
LISTED = 20


def measurements(sizes: Sizes) -> dict[str, Callable[[], Result]]:
    """Return the only measurement of this step; on a machine without a GPU all tests are skipped."""
    return {"gpu": run}


def run() -> Result:
    """Run the marked tests and count the outcomes.

    Raises:
        NotMeasuredError: Pytest did not run.
    """
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in path.read_text()]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder) / "outcomes.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={outcomes}"]
        done = subprocess.run([*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # some failed
            lines = (done.stdout + done.stderr).strip().splitlines()
            raise NotMeasuredError(f"pytest ended with code {done.returncode}: {lines[-1] if lines else ''}")
        cases = list(ElementTree.parse(outcomes).iter("testcase"))
    counts, notes = Counter(dict.fromkeys(("passed", "failed", "skipped"), 0)), {}
    for case in cases:
        found = {child.tag: child for child in case}
        broken = found.get("failure", found.get("error"))
        counts["failed" if broken is not None else "skipped" if "skipped" in found else "passed"] += 1
        if broken is not None and len(notes) < LISTED:
            name = f"{case.get('classname')}::{case.get('name')}"
            notes[name] = (broken.get("message") or "").strip().splitlines()[0][:200] if broken.get("message") else ""
    return Result(values={name: float(count) for name, count in counts.items()}, notes=notes)
