"""Triton kernel: interpreted on a CPU, and compiled for several GPUs."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="this build of torch has no Triton"
)

PROGRAM = Path(__file__).with_name("interpreted.py")


def run(name: str, **variables: str) -> str:
    """Run a part of the program in a child process, since Triton reads its environment variable at import."""
    path = os.pathsep.join([str(PROGRAM.parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path} | variables
    done = subprocess.run([sys.executable, PROGRAM, name], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
def test_the_interpreted_kernel_multiplies_by_the_unpacked_weight() -> None:
    assert run("products", TRITON_INTERPRET="1") == "38 cases\n"


def test_without_triton_there_is_no_such_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "patch.inference.backends.fused"
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError):
        importlib.import_module(name)


@needs_triton
def test_all_loads_of_a_compiled_loop_are_asynchronous() -> None:
    pytest.importorskip("triton.backends.nvidia")
    assert run("loads", TRITON_INTERPRET="0") == "15\n15\n"
