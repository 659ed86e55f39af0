"""Tests of the mask kernels: agreement, independence of threads and blocks, and compilation."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patch import native
from patch.masks import kernels
from patch.masks.kernels import Layer, Sampling, compiled, eager, products
from patch.masks.kernels.eager import pack_bits, unpack_bits
from patch.masks.noise import noise_keys

SIX = torch.tensor([(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1)])
MODES = ["joint", "tile", "2:4"]


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


def make(
    mode: str,
    grid: tuple[int, int],
    tile: tuple[int, int],
    hard: bool = False,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = grid[0] * tile[0], grid[1] * tile[1]
    groups = rows * columns // 4
    choice = torch.randint(0, 6, (groups,), generator=generator)
    return Layer(
        torch.randn(rows, columns, generator=generator).to(dtype),
        torch.randn(6, groups, generator=generator) if mode != "tile" else None,
        pack_bits(SIX[choice].reshape(rows, columns).bool()) if mode == "tile" else None,
        torch.rand(grid, generator=generator) if mode != "2:4" else None,
        tile if mode != "2:4" else (1, 4),
        Sampling(1.0, temperature, hard),
        noise_keys(seed),
    )


def run(kernel: ModuleType, layer: Layer, rows_at_a_time: int = 2**20, start: float | None = None) -> dict[str, Tensor]:
    """Return a kernel's results for a layer, block by block; ``start`` initializes the logits' gradient."""
    rows, columns = layer.weight.shape
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(rows, columns, generator=generator).to(layer.weight.dtype)
    grad_logits = None if layer.logits is None else torch.full_like(layer.logits, 7.0 if start is None else start)
    grad_density = None if layer.tile_density is None else torch.zeros_like(layer.tile_density)
    masked, norm = [], 0.0
    for first in range(0, rows, rows_at_a_time):
        size = min(rows_at_a_time, rows - first)
        part = torch.full((size, columns), 7.0, dtype=layer.weight.dtype)
        norm += float(kernel.forward(layer, first, part))
        masked.append(part)
        mine, again = gradient[first : first + size], None if first else torch.full_like(part, 7.0)
        arguments = (torch.tensor(0.3), grad_logits, start is not None, grad_density)
        kernel.backward(layer, first, mine, again, *arguments)
        assert again is None or torch.equal(again.view(torch.uint8), part.view(torch.uint8))
    found = {
        "masked": torch.cat(masked),
        "norm": torch.tensor(norm),
        "grad_logits": grad_logits,
        "grad_density": grad_density,
    }
    return {name: value for name, value in found.items() if value is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], rounding: float, of_weights: float) -> None:
    assert set(found) == set(expected)
    for name, value in found.items():
        scale = float(expected[name].abs().max())
        bound = (of_weights if name == "masked" else rounding) * scale
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=0, atol=bound, msg=name)


@needs_compiler
@given(
    mode=st.sampled_from(MODES),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    height=st.integers(1, 9),
    groups=st.integers(1, 40),
    hard=st.booleans(),
    temperature=st.sampled_from([4.0, 1.0, 0.2]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    block=st.integers(1, 50),
    start=st.sampled_from([None, 0.0, 1.5]),
    seed=st.integers(0, 1000),
)
def test_kernels_agree(
    mode: str,
    grid: tuple[int, int],
    height: int,
    groups: int,
    hard: bool,
    temperature: float,
    dtype: torch.dtype,
    block: int,
    start: float | None,
    seed: int,
) -> None:
    layer = make(mode, grid, (height, 4 * groups), hard, temperature, dtype, seed)
    expected = run(eager, layer, start=start)
    # One bit of a bfloat16 where fp32 lies between two.
    assert_close(run(compiled, layer, block, start), expected, 1e-5, 1e-5 if dtype == torch.float32 else 2**-8)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Return a function that sets the number of threads for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("grid", "tile"), [((1, 1), (1, 4)), ((5, 3), (8, 44)), ((3, 2), (32, 128)), ((2, 9), (1, 12))]
)
def test_any_number_of_threads_is_the_same_bit_for_bit(
    grid: tuple, tile: tuple, mode: str, hard: bool, dtype: torch.dtype, threads: Callable
) -> None:
    layer = make(mode, grid, tile, hard, dtype=dtype)
    threads(1)
    expected = run(compiled, layer, 13, 0.5)
    for count in (2, 3):
        threads(count)
        found = run(compiled, layer, 13, 0.5)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_any_block_of_rows_is_the_same_bit_for_bit(mode: str, dtype: torch.dtype) -> None:
    layer = make(mode, (5, 3), (8, 44), dtype=dtype)
    expected = run(compiled, layer)
    for block in (1, 3, 8, 17, 39):
        found = run(compiled, layer, block)
        for name in {"masked", "grad_logits"} & set(found):
            assert torch.equal(found[name], expected[name])
        assert_close(found, expected, 1e-6, 0)


@pytest.mark.parametrize("kernel", [pytest.param(compiled, marks=needs_compiler), eager])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("mode", ["joint", "2:4"])
@pytest.mark.parametrize("start", [None, 0.5])
def test_the_logits_of_some_rows_do_for_these_rows(
    start: float | None, mode: str, hard: bool, dtype: torch.dtype, kernel: ModuleType
) -> None:
    """The noise depends on the place of the rows in the layer, not on the logits that are held."""
    layer, groups = make(mode, (5, 3), (8, 44), hard, dtype=dtype), 33
    gradient = torch.randn(40, 132, generator=torch.Generator().manual_seed(1)).to(dtype)
    for first, last in ((0, 40), (8, 32), (16, 40), (24, 32)):
        part = replace(layer, logits=layer.logits[:, first * groups : last * groups].clone(), first_row=first)
        found = []
        for one, begin in ((layer, 0), (part, first)):
            masked = torch.empty(last - first, 132, dtype=dtype)
            grad_logits = torch.full_like(one.logits, 7.0 if start is None else start)
            grad_density = None if one.tile_density is None else torch.zeros_like(one.tile_density)
            norm = torch.tensor(float(kernel.forward(one, first, masked)))
            mine, add = gradient[first:last], start is not None
            kernel.backward(one, first, mine, None, torch.tensor(0.3), grad_logits, add, grad_density)
            own = grad_logits[:, (first - begin) * groups : (last - begin) * groups]
            found.append([masked, norm, own, *([] if grad_density is None else [grad_density])])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@needs_compiler
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_rounded_once_to_the_nearest(mode: str, hard: bool) -> None:
    half = make(mode, (4, 4), (4, 36), hard, dtype=torch.bfloat16)
    found, expected = run(compiled, half), run(compiled, replace(half, weight=half.weight.float()))
    assert torch.equal(found["masked"], expected["masked"].bfloat16())
    assert torch.equal(found["norm"], expected["norm"]), "of the values before they are rounded"


@needs_compiler
def test_bfloat16_between_two_numbers_goes_to_the_even_one() -> None:
    half = make("tile", (4, 4), (4, 36), dtype=torch.bfloat16)
    half = replace(half, tile_density=torch.full((4, 4), 0.75))
    found, exact = run(compiled, half)["masked"], run(compiled, replace(half, weight=half.weight.float()))["masked"]
    assert ((exact.view(torch.int32) & 0xFFFF) == 0x8000).sum() > 100, "ties"
    assert torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize("kernel", [pytest.param(compiled, marks=needs_compiler), eager])
def test_of_equally_likely_patterns_the_first_is_chosen(kernel: ModuleType) -> None:
    found = run(kernel, make("2:4", (3, 5), (1, 12), hard=True, temperature=1e30))
    assert ((found["masked"] != 0).view(-1, 4) == SIX[0]).all()


@needs_compiler
def test_the_caller_keeps_its_denormals() -> None:
    layer = make("joint", (2, 2), (4, 16), temperature=0.01)
    run(compiled, layer)
    tiny = torch.full((64,), 1e-30)
    assert (tiny * 1e-10 > 0).all()


@pytest.mark.parametrize("kernel", [pytest.param(compiled, marks=needs_compiler), eager])
def test_logits_that_are_not_numbers_are_not_hidden(kernel: ModuleType) -> None:
    """A NaN in any of the six logits reaches the loss."""
    for place in range(6):
        layer = make("2:4", (1, 1), (3, 20))
        layer.logits[place, 7] = float("nan")
        found = run(kernel, layer)
        assert not found["norm"].isfinite() and found["masked"].isnan().sum() == 4


@given(st.integers(1, 300), st.data())
def test_bits_round_trip(count: int, data: st.DataObject) -> None:
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    bits = pack_bits(mask)
    # Kernels read eight bytes from any bit on.
    assert bits.dtype == torch.uint8 and len(bits) == (count + 7) // 8 + 8
    assert [bool(bits[i // 8] >> i % 8 & 1) for i in range(count)] == mask.tolist()
    assert not unpack_bits(bits, count, 64).any()
    first = data.draw(st.integers(0, count))
    size = data.draw(st.integers(0, count - first))
    part = unpack_bits(bits, first, size)
    assert part.dtype == torch.bool and torch.equal(part, mask[first : first + size])


def test_bits_of_a_matrix_go_row_by_row() -> None:
    mask = torch.randn(7, 12, generator=torch.Generator().manual_seed(0)) > 0
    assert torch.equal(pack_bits(mask), pack_bits(mask.flatten()))
    assert torch.equal(pack_bits(mask.T.contiguous().T), pack_bits(mask))
    assert torch.equal(unpack_bits(pack_bits(mask), 0, 84).view(7, 12), mask)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Clear the caches of compiled kernels before and after the test."""
    kernels._fast_kernel.cache_clear()
    compiled.load.cache_clear()
    yield
    kernels._fast_kernel.cache_clear()
    compiled.load.cache_clear()


def test_without_a_compiler(empty_path: Path, fresh: None) -> None:
    cpu = torch.device("cpu")
    with pytest.warns(UserWarning, match=r"plain PyTorch, several times slower: no C\+\+ compiler") as caught:
        assert kernels.kernel_for(cpu, torch.float32) is eager
        assert kernels.kernel_for(cpu, torch.bfloat16) is eager
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.kernel_for(cpu, torch.float32) is eager


@needs_compiler
def test_without_a_place_for_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCH_KERNEL_CACHE", str(tmp_path / "file/cache"))
    with pytest.warns(UserWarning, match=r"plain PyTorch, several times slower: .*Not a directory.*file/cache"):
        assert kernels.kernel_for(torch.device("cpu"), torch.float32) is eager


@needs_compiler
def test_what_is_compiled_and_what_is_not(fresh: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.kernel_for(torch.device("cpu"), torch.float32) is compiled
        assert kernels.kernel_for(torch.device("cpu"), torch.bfloat16) is compiled
        assert kernels.kernel_for(torch.device("cpu"), torch.float64) is eager


@needs_compiler
@pytest.mark.parametrize("module", [compiled, products])
def test_the_source_compiles_without_a_warning(module: ModuleType, tmp_path: Path) -> None:
    flags = [*native.FLAGS, *module.FLAGS, "-Wall", "-Wextra", "-Wno-psabi", "-Wno-attributes", "-O0"]
    command = [compiler(), *flags, str(module.SOURCE), f"-I{native.INCLUDE}", "-o", str(tmp_path / "made.so")]
    run_of = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run_of.returncode, run_of.stderr) == (0, "")
