"""Tests of the Triton kernels, interpreted on a CPU, against plain PyTorch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("interpreted.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="this build of torch brings no Triton")
def test_the_interpreted_kernels_are_the_eager_ones() -> None:
    """Run in a child process, since Triton reads its environment variable at import."""
    path = os.pathsep.join([str(PROGRAM.parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    run = subprocess.run([sys.executable, PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "80 cases\n"
