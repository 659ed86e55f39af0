"""Triton kernel: interpreted on a CPU, compiled for several GPUs, and run on a GPU."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patch.inference.packed import unpack

from .interpreted import packed_weight

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
    assert run("products", TRITON_INTERPRET="1") == "40 cases\n"


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


@needs_triton
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 130])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_gpu_multiplies_by_the_unpacked_weight(dtype: torch.dtype, rows: int, share: float) -> None:
    from patch.inference.backends import fused

    packed = packed_weight(512, 1024, 128, share, dtype, "cuda")
    inputs = torch.randn(rows, 1024, device="cuda").to(dtype)
    actual = fused.multiply(packed, inputs)
    expected = inputs.double() @ unpack(packed).double().T
    scale = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-6}[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=scale * float(expected.abs().max()))
    assert torch.equal(actual, fused.multiply(packed, inputs))


@needs_triton
@pytest.mark.gpu
def test_a_graph_captures_it() -> None:
    from patch.inference.backends import fused

    packed = packed_weight(512, 1024, 128, 0.5, torch.float16, "cuda")
    inputs = torch.randn(2, 1024, device="cuda", dtype=torch.float16)
    fused.multiply(packed, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fused.multiply(packed, inputs)
    inputs.copy_(torch.randn(2, 1024))
    graph.replay()
    assert torch.equal(captured, fused.multiply(packed, inputs))
