"""Products on the CPU with each of its instruction sets, compared with those of the unpacked weight in float64."""

from __future__ import annotations

import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference import backends
from patch.inference.backends import backend_for, compiled, unpacked
from patch.inference.packed import PackedWeight
from patch.native import FLAGS, INCLUDE, NoCompiler

from .conftest import compiles

ROWS = [1, 2, 3, 4, 5, 16, 17, 33, 64, 65, 130, 300, 540, 1030]
DTYPES = [torch.float32, torch.bfloat16]
# Shape and tile: some for each kernel, and some that no kernel supports.
SHAPES = [
    ((64, 96), 32),
    ((48, 48), 16),
    ((16, 128), 128),
    ((96, 64), 96),
    ((256, 256), 128),
    ((192, 192), 192),
    ((80, 160), 160),
    ((128, 64), 64),
    ((40, 64), 64),
    ((7, 160), 160),
    ((60, 100), 20),
    ((24, 36), 12),
    ((5, 4), 128),
    ((25, 100), 100),
    ((16, 16), 4),
    ((130, 12), 130),
]


needs_compiler = pytest.mark.skipif(not compiles(), reason="no C++ compiler")


def forget() -> None:
    for known in (compiled.load, compiled._kernel, backends._load_if_available):
        known.cache_clear()


@pytest.fixture
def fresh() -> Iterator[None]:
    """Clear the caches of compiled libraries and backends before and after the test."""
    forget()
    yield
    forget()


def random_inputs(rows: int, columns: int, dtype: torch.dtype, whole: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    if whole:
        return torch.randint(-4, 5, (rows, columns), generator=generator).to(dtype)
    return torch.randn(rows, columns, generator=generator).to(dtype)


def assert_product(found: Tensor, inputs: Tensor, masked: Tensor) -> None:
    """Check products within the error of fp32 sums in any order that are rounded once to the dtype."""
    expected, sizes = inputs.double() @ masked.double().T, inputs.double().abs() @ masked.double().abs().T
    bound = 2**-24 * masked.shape[1] * sizes
    if found.dtype == torch.bfloat16:
        bound += 2**-8 * (expected.abs() + bound)
    assert found.dtype == inputs.dtype and found.shape == expected.shape
    worst = ((found.double() - expected).abs() - bound).max()
    assert worst <= 0, worst


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "tile"), SHAPES)
def test_a_product_is_that_of_the_masked_weight(
    shape: tuple, tile: int, dtype: torch.dtype, instructions: str, hybrid_weight: Callable
) -> None:
    for fraction in (0.0, 0.5, 1.0):
        made = hybrid_weight(shape, tile, fraction, dtype)
        packed = made.packed
        for rows in ROWS:
            inputs = random_inputs(rows, shape[1], dtype)
            assert compiled.supports(packed, inputs) is None
            assert_product(compiled.multiply(packed, inputs), inputs, made.masked)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "tile"), SHAPES)
def test_whole_numbers_are_exact_and_rounded_to_the_nearest(
    shape: tuple, tile: int, dtype: torch.dtype, instructions: str, hybrid_weight: Callable
) -> None:
    """Sums of small integers are exact in fp32 in any order; bf16 rounds ties to even."""
    made = hybrid_weight(shape, tile, 0.5, dtype, whole=True, fewer=True)
    packed = made.packed
    for rows in ROWS:
        inputs = random_inputs(rows, shape[1], dtype, whole=True)
        inputs[-1] *= 32
        expected = (inputs.double() @ made.masked.double().T).to(dtype)
        assert torch.equal(compiled.multiply(packed, inputs), expected), rows


@needs_compiler
def test_ties_are_among_the_whole_numbers(hybrid_weight: Callable) -> None:
    made, inputs = hybrid_weight((256, 256), 128, whole=True), random_inputs(16, 256, torch.float32, whole=True)
    exact = (inputs @ made.masked.T).view(torch.int32)
    assert ((exact & 0xFFFF) == 0x8000).sum() > 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "tile"), [((256, 256), 128), ((96, 64), 96), ((48, 48), 16), ((7, 160), 160)])
def test_any_number_of_threads_is_the_same_bit_for_bit(
    shape: tuple, tile: int, dtype: torch.dtype, instructions: str, threads: Callable, hybrid_weight: Callable
) -> None:
    made = hybrid_weight(shape, tile, 0.5, dtype)
    packed = made.packed
    for rows in (1, 2, 4, 17, 33, 130, 300, 540):
        inputs, found = random_inputs(rows, shape[1], dtype), []
        for count in (1, 2, 4):
            threads(count)
            found.append(compiled.multiply(packed, inputs))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]), rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_many_pages(dtype: torch.dtype, instructions: str, hybrid_weight: Callable) -> None:
    """The weight is moved to large pages and unpacked in several blocks."""
    made = hybrid_weight((2176, 1024), 128, 0.3, dtype)
    packed = made.packed
    values, bits = packed.values.clone(), packed.bits.clone()
    for rows in (2, 18, 140, 1030):
        inputs = random_inputs(rows, 1024, dtype)
        assert_product(compiled.multiply(packed, inputs), inputs, made.masked)
    assert torch.equal(packed.values, values) and torch.equal(packed.bits, bits)


@pytest.mark.parametrize(("shape", "tile"), [((64, 96), 32), ((48, 48), 16), ((24, 36), 12)])
def test_no_inputs(shape: tuple, tile: int, instructions: str, hybrid_weight: Callable) -> None:
    for dtype in DTYPES:
        packed = hybrid_weight(shape, tile, dtype=dtype).packed
        found = compiled.multiply(packed, torch.empty(0, shape[1], dtype=dtype))
        assert found.shape == (0, shape[0]) and found.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 20, 140])
def test_inputs_that_are_not_contiguous(
    rows: int, dtype: torch.dtype, instructions: str, hybrid_weight: Callable
) -> None:
    made = hybrid_weight((64, 96), 32, dtype=dtype)
    packed, base = made.packed, random_inputs(2 * rows, 192, dtype)
    for inputs in (
        base[::2, :96],
        base[:rows, ::2],
        base.T[:rows, : 2 * rows][:, :1].expand(rows, 96),
        base[:1, :96].expand(rows, 96),
    ):
        assert not inputs.is_contiguous() or rows == 1
        assert torch.equal(compiled.multiply(packed, inputs), compiled.multiply(packed, inputs.clone().contiguous()))
        assert_product(compiled.multiply(packed, inputs), inputs, made.masked)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 4, 20, 100, 140])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_inputs_that_are_not_finite(
    bad: float, rows: int, dtype: torch.dtype, instructions: str, hybrid_weight: Callable
) -> None:
    """They change only their own row of outputs. A kernel may skip masked weights or multiply them: 0 * inf is NaN."""
    made = hybrid_weight((64, 96), 32, 0.5, dtype)
    inputs, column = random_inputs(rows, 96, dtype), 37
    good = compiled.multiply(made.packed, inputs)
    inputs[rows // 2, column] = bad
    found = compiled.multiply(made.packed, inputs)
    others = torch.arange(rows) != rows // 2
    assert torch.equal(found[others], good[others])
    weights = made.masked[:, column]
    kept = made.mask[:, column]
    mine, expected = found[rows // 2].float(), bad * weights.float()
    torch.testing.assert_close(mine[kept], expected[kept], equal_nan=True)
    without = inputs[rows // 2].double().clone()
    without[column] = 0
    rest = made.masked.double() @ without
    passed = ~kept & ~mine.isnan()
    torch.testing.assert_close(mine[passed].double(), rest[passed], rtol=2**-8, atol=1e-4)
    assert (~kept).any() and made.dense[:, 1].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 4, 20, 100])
def test_large_and_small_numbers(rows: int, dtype: torch.dtype, instructions: str, hybrid_weight: Callable) -> None:
    made, inputs = hybrid_weight((64, 96), 32, 0.5, dtype), random_inputs(rows, 96, dtype)
    expected = inputs.double() @ made.masked.double().T
    for of_weight, of_inputs in ((60, 60), (-50, -50), (100, -100), (-110, 100), (120, 0)):
        large = type(made)(made.weight * 2.0**of_weight, made.mask, made.dense, made.tile)
        found = compiled.multiply(large.packed, inputs * 2.0**of_inputs)
        size = 2.0 ** -(of_weight + of_inputs)
        torch.testing.assert_close(found.double() * size, expected, rtol=2**-8, atol=1e-4)
    # Beyond the largest number.
    made.weight.copy_(made.weight.abs() * 2.0**120)
    found = compiled.multiply(made.packed, torch.full((rows, 96), 2.0**20, dtype=dtype))
    assert (found == torch.inf).all()
    assert (compiled.multiply(made.packed, torch.full((rows, 96), -(2.0**20), dtype=dtype)) == -torch.inf).all()


@needs_compiler
def test_a_weight_that_moves_in_memory(hybrid_weight: Callable) -> None:
    """The memory also moves when a weight is shared with another process."""
    made, inputs = hybrid_weight((64, 96), 32), random_inputs(2, 96, torch.float32)
    packed = made.packed
    expected = compiled.multiply(packed, inputs)
    before = packed.values.data_ptr()
    old = [packed.values.untyped_storage(), packed.bits.untyped_storage()]
    packed.values.data, packed.bits.data = packed.values.clone(), packed.bits.clone()
    assert packed.values.data_ptr() != before
    for storage in old:
        storage.fill_(0x55)
    assert torch.equal(compiled.multiply(packed, inputs), expected)


@needs_compiler
def test_the_native_struct_is_cached_until_the_weight_moves(hybrid_weight: Callable) -> None:
    packed = hybrid_weight((64, 96), 32).packed
    compiled.multiply(packed, torch.ones(1, 96))
    struct = packed.checked.cache[compiled.CACHE_KEY]
    compiled.multiply(packed, torch.ones(1, 96))
    assert packed.checked.cache[compiled.CACHE_KEY] is struct
    packed.values.data = packed.values.clone()
    compiled.multiply(packed, torch.ones(1, 96))
    assert packed.checked.cache[compiled.CACHE_KEY] is not struct


@pytest.mark.parametrize("rows", [1, 3, 20, 140])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "tile"), [((64, 96), 32), ((48, 48), 16), ((24, 36), 12)])
def test_bits_that_do_not_keep_two_of_four_lead_nowhere(
    shape: tuple, tile: int, dtype: torch.dtype, rows: int, instructions: str, hybrid_weight: Callable
) -> None:
    """Such bits follow from writes that PyTorch does not count; outputs of dense tiles stay right."""
    made = hybrid_weight(shape, tile, 0.2, dtype)
    made.dense[0], made.mask[:tile] = True, True
    packed, inputs = made.packed, random_inputs(rows, shape[1], dtype)
    expected = compiled.multiply(packed, inputs)
    generator = torch.Generator().manual_seed(rows)
    packed.bits.numpy()[:] = torch.randint(256, packed.bits.shape, generator=generator, dtype=torch.uint8).numpy()
    found = compiled.multiply(packed, inputs)
    packed.bits.numpy()[:] = 0
    compiled.multiply(packed, inputs)
    assert torch.equal(found[:, :tile], expected[:, :tile]) and not torch.equal(found, expected)


def test_instructions_that_this_processor_lacks(
    monkeypatch: pytest.MonkeyPatch, fresh: None, hybrid_weight: Callable
) -> None:
    monkeypatch.setenv("PATCH_INSTRUCTIONS", "mmx")
    packed, inputs = hybrid_weight((64, 96), 32).packed, torch.ones(1, 96)
    match = f"PATCH_INSTRUCTIONS is 'mmx'; this processor has .*{compiled.available()[-1]}"
    for run in (compiled.supports, compiled.multiply, backend_for):
        with pytest.raises(InputError, match=match):
            run(packed, inputs)
    monkeypatch.setattr(compiled, "processor", lambda: frozenset(["avx", "avx2", "fma"]))
    assert compiled.available() == ["avx2", "portable"]
    monkeypatch.setenv("PATCH_INSTRUCTIONS", "avx512")
    with pytest.raises(InputError, match="PATCH_INSTRUCTIONS is 'avx512'; this processor has avx2, portable"):
        compiled.supports(packed, inputs)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fma avx avx2 avx512f avx512dq avx512bw avx512vl avx512_vbmi2 avx512_bf16 amx_bf16 amx_tile", "amx"),
        ("fma avx avx2 avx512f avx512dq avx512bw avx512vl avx512_vbmi2 avx512_bf16 amx_tile", "avx512-bf16"),
        ("fma avx avx2 avx512f avx512dq avx512bw avx512vl avx512_vbmi2", "avx512-vbmi2"),
        ("fma avx avx2 avx512f avx512dq avx512bw avx512vl", "avx512"),
        ("fma avx avx2 avx512f", "avx2"),
        ("asimd bf16", "portable"),
    ],
)
def test_instructions_as_the_system_writes_them(flags: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "processor", lambda: frozenset(flags.split()))
    names = list(compiled.INSTRUCTIONS)
    assert compiled.available() == names[names.index(expected) :]


@pytest.mark.parametrize("error", [NoCompiler("no C++ compiler here"), PermissionError("no place for it")])
def test_without_a_compiler(
    error: Exception, monkeypatch: pytest.MonkeyPatch, fresh: None, hybrid_weight: Callable
) -> None:
    def no_library(*_: object) -> None:
        raise error

    monkeypatch.delenv("PATCH_INSTRUCTIONS", raising=False)
    monkeypatch.setattr(compiled, "library", no_library)
    made, inputs = hybrid_weight((64, 96), 32), random_inputs(3, 96, torch.float32)
    packed = made.packed
    with pytest.warns(
        UserWarning, match=f"plain PyTorch, slower than dense ones: {str(error).replace('+', '.')}"
    ) as caught:
        multiply = backend_for(packed, inputs)
        backend_for(packed, inputs)
    assert len(caught) == 1 and multiply is unpacked.multiply
    assert_product(multiply(packed, inputs), inputs, made.masked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled.supports(packed, inputs) == str(error)
        with pytest.raises(InputError, match="backend compiled: no "):
            backend_for(packed, inputs, "compiled")


@needs_compiler
def test_a_compiler_that_does_not_know_the_newest_instructions(
    monkeypatch: pytest.MonkeyPatch, fresh: None, hybrid_weight: Callable
) -> None:
    asked, right = [], compiled.library

    def old(source: Path, flags: tuple[str, ...]) -> object:
        asked.append(flags)
        if flags:
            raise NoCompiler(f"unknown {flags[0]}")
        return right(source, flags)

    monkeypatch.delenv("PATCH_INSTRUCTIONS", raising=False)
    monkeypatch.setattr(compiled, "library", old)
    packed, inputs = hybrid_weight((64, 96), 32).packed, torch.ones(1, 96)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled.supports(packed, inputs) is None
        assert backend_for(packed, inputs) is compiled.multiply
    assert compiled._kernel()[0] == "portable" and len(asked) == len(compiled.available())


@needs_compiler
def test_the_reason_is_named(hybrid_weight: Callable) -> None:
    def reason(packed: PackedWeight, inputs: Tensor) -> str:
        return compiled.supports(packed, inputs) or ""

    made = hybrid_weight((64, 96), 32)
    packed, inputs = made.packed, torch.ones(2, 96)
    assert compiled.supports(packed, inputs) is None
    assert reason(packed, inputs.to("meta")) == "runs on a CPU, not on meta"
    assert reason(packed.to("meta"), inputs) == "inputs on cpu, the weight on meta"
    assert reason(packed, inputs.bfloat16()) == "inputs in torch.bfloat16, the weight in torch.float32"
    for dtype in (torch.float16, torch.float64):
        other = hybrid_weight((64, 96), 32, dtype=dtype).packed
        assert reason(other, inputs.to(dtype)) == f"a weight in {dtype}; expected float32 or bfloat16"
        assert backend_for(other, inputs.to(dtype)) is unpacked.multiply
    wanted = inputs.clone().requires_grad_()
    assert reason(packed, wanted) == "it has no backward pass, and the inputs require gradients"
    assert backend_for(packed, wanted) is unpacked.multiply
    with torch.no_grad():
        assert compiled.supports(packed, wanted) is None


def test_gradients_of_inputs_without_it(hybrid_weight: Callable) -> None:
    made, inputs = hybrid_weight((64, 96), 32), random_inputs(3, 96, torch.float32).requires_grad_()
    backend_for(made.packed, inputs)(made.packed, inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, made.masked.sum(0).expand(3, -1))


DTYPES_OF_SHAPES = [
    *((shape, tile, dtype) for shape, tile in SHAPES for dtype in (*DTYPES, torch.float16, torch.float64)),
    ((2112, 4096), 64, torch.float32),  # in several pieces
]


@pytest.mark.parametrize(("shape", "tile", "dtype"), DTYPES_OF_SHAPES)
def test_plain_pytorch(shape: tuple, tile: int, dtype: torch.dtype, hybrid_weight: Callable) -> None:
    made = hybrid_weight(shape, tile, 0.5, dtype)
    packed, inputs = made.packed, random_inputs(3, shape[1], dtype)
    assert unpacked.supports(packed, inputs) is None
    found, expected = unpacked.multiply(packed, inputs), inputs.double() @ made.masked.double().T
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2**-7)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_plain_pytorch_on_another_device(hybrid_weight: Callable) -> None:
    packed = hybrid_weight((64, 96), 32).packed
    assert unpacked.supports(packed, torch.ones(1, 96, device="meta")) == "inputs on meta, the weight on cpu"
    with pytest.raises(InputError, match="the packed weight cannot be multiplied: inputs on meta, the weight on cpu"):
        backend_for(packed, torch.ones(1, 96, device="meta"))


@needs_compiler
@pytest.mark.parametrize("name", list(compiled.INSTRUCTIONS) if platform.machine() == "x86_64" else ["portable"])
def test_the_source_compiles_without_a_warning(name: str, tmp_path: Path) -> None:
    """Instruction sets that this processor lacks are compiled too, unless it is of another family."""
    path = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    flags = [*FLAGS, *(f"-m{flag}" for flag in compiled.INSTRUCTIONS[name])]
    flags += ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-attributes", "-O0"]
    command = [path, *flags, str(compiled.SOURCE), f"-I{INCLUDE}", "-o", str(tmp_path / "made.so")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
