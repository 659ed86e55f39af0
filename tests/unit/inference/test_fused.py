"""Triton kernel: interpreted on a CPU, compiled for several GPUs, and run on a GPU."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patch.inference.packed import PackedWeight, pack, unpack

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="this build of torch has no Triton"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Run in a child process, since Triton reads its environment variable at import.
CHECK = """
import torch
from tests_of_fused import packed_weight
from patch.inference.backends import fused
from patch.inference.linear import HybridLinear
from patch.inference.packed import unpack

TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
fused.COLUMNS = 16

def check(out, columns, tile, share, dtype, rows, programs=4):
    fused.PROGRAMS = programs
    packed = packed_weight(out, columns, tile, share, dtype)
    inputs = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert fused.supports(packed, inputs) is None
    actual = fused.multiply(packed, inputs)
    expected = inputs.double() @ unpack(packed).double().T
    assert actual.shape == expected.shape and actual.dtype == dtype
    # The interpreter cuts a number off where a GPU rounds it to bf16.
    error = float((actual.double() - expected).abs().max() / expected.abs().max())
    assert error < TOLERANCES[dtype], (out, columns, tile, share, dtype, rows, programs, error)
    assert torch.equal(actual, fused.multiply(packed, inputs))
    return fused.splits(packed, rows)[0]

count = 0
# Few rows and many, by every configuration.
for rows, configs in ((1, fused.FEW_CONFIGS), (17, fused.FEW_CONFIGS), (130, fused.MANY_CONFIGS)):
    tried = configs[:]
    for config in tried:
        configs[:] = [config]
        check(256, 256, 128, 0.5, list(TOLERANCES)[count % 3], rows)
        count += 1
    configs[:] = tried
# Tiles of many sides; layers smaller than a tile; all dense, all sparse; few and many rows.
sizes = [(64, 96, 16), (96, 64, 32), (192, 128, 64), (48, 96, 48), (32, 256, 128), (256, 32, 256), (16, 16, 128)]
for index, (out, columns, tile) in enumerate(sizes):
    for share in (0.0, 0.4, 1.0):
        check(out, columns, tile, share, list(TOLERANCES)[(index + count) % 3], (1, 3, 16, 64, 65)[count % 5])
        count += 1
# Splits of the columns: the target number, one for each tile, and a smaller last split.
found = [check(32, 160, 32, 0.5, torch.float32, rows, programs)
         for rows in (3, 70) for programs in (1, 2, 3, 4, 100)]
assert found == [1, 2, 3, 3, 5] * 2, found
print(count, "cases")

packed = packed_weight(64, 96, 32, 0.5, torch.float32)
bias = torch.randn(64)
layer = HybridLinear(packed, bias, backend="fused")
weight = unpack(packed)
whole = torch.randn(2, 5, 192)
for inputs in (whole[..., :96], whole[..., ::2], whole.transpose(1, 2)[:, :96].mT, whole[0, 0, :96]):
    assert torch.allclose(layer(inputs), inputs @ weight.T + bias, atol=1e-4)
assert layer(torch.empty(2, 0, 96)).shape == (2, 0, 64)
# A map of tiles in another order in memory.
columns_first = packed.dense.T.contiguous().T
assert torch.equal(fused.multiply(type(packed)(packed.shape, 32, columns_first, packed.values, packed.bits), weight),
                   fused.multiply(packed, weight))

def reason(packed, inputs):
    return fused.supports(packed, inputs)

assert "float64" in reason(packed_weight(32, 32, 16, 0.5, torch.float64), torch.zeros(1, 32))
assert "inputs in torch.float16" in reason(packed, torch.zeros(1, 96, dtype=torch.float16))
assert "24x24" in reason(packed_weight(48, 48, 24, 0.5, torch.float32), torch.zeros(1, 48))
assert "meta" in reason(packed, torch.zeros(1, 96, device="meta"))
asking = torch.zeros(1, 96, requires_grad=True)
assert "backward" in reason(packed, asking)
with torch.no_grad():
    assert reason(packed, asking) is None
"""


def packed_weight(
    out: int, columns: int, tile: int, share: float, dtype: torch.dtype, device: str = "cpu"
) -> PackedWeight:
    """Return a random weight with about a fraction of its tiles dense."""
    generator = torch.Generator().manual_seed(0)
    height, width = min(out, tile), min(columns, tile)
    dense = torch.rand(out // height, columns // width, generator=generator) < share
    kept = torch.rand(out, columns // 4, 4, generator=generator).argsort(-1) < 2
    mask = kept.view(out, columns) | dense.repeat_interleave(height, 0).repeat_interleave(width, 1)
    return pack(torch.randn(out, columns, generator=generator).to(dtype), mask, dense, tile).to(device)


def run(script: str, **variables: str) -> str:
    """Run a script that can import this file, and return its output."""
    here = (
        f"import importlib.util, sys\nspec = importlib.util.spec_from_file_location('tests_of_fused', {__file__!r})\n"
    )
    here += "sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\n"
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path} | variables
    done = subprocess.run([sys.executable, "-c", here + script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
def test_the_interpreted_kernel_multiplies_by_the_unpacked_weight() -> None:
    assert run(CHECK, TRITON_INTERPRET="1") == "40 cases\n"


def test_without_triton_there_is_no_such_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "patch.inference.backends.fused"
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError):
        importlib.import_module(name)


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from patch.inference.backends import fused

names = fused._multiply.arg_names
kinds = dict.fromkeys(("inputs", "values"), "*bf16") | {"bits": "*i16", "dense": "*i1", "offsets": "*i64"}
constants = {"HEIGHT": 128, "WIDTH": 128, "DENSE": True, "SPARSE": True, "FP32": False}
constants |= {"ROWS": 16, "HIGH": 64, "DEPTH": 64}
signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names} | {"output": "*fp32"}
aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in (*kinds, "output", "out", "stride")}
values = {(names.index(name),): value for name, value in constants.items()}
source = ASTSource(fused._multiply, signature=signature, constexprs=values, attrs=aligned)
for generation in (80, 90):
    kernel = triton.compile(source, target=GPUTarget("cuda", generation, 32), options={"num_warps": 4, "num_stages": 3})
    # Twice before the loop and once in it: the inputs and both loads of values, sixteen bytes per thread.
    print(kernel.asm["ptx"].count("cp.async.cg.shared.global"))
"""


@needs_triton
def test_all_loads_of_a_compiled_loop_are_asynchronous() -> None:
    pytest.importorskip("triton.backends.nvidia")
    assert run(COMPILE, TRITON_INTERPRET="0") == "15\n15\n"


@needs_triton
@needs_gpu
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
@needs_gpu
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
