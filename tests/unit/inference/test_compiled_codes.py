"""Products with codes of four bits on the CPU, with each of its instruction sets, compared with those in float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference.backends import backend_for, compiled, unpacked
from patch.inference.packed import unpack

ROWS = [1, 2, 3, 4, 5, 17, 33]
DTYPES = [torch.float32, torch.bfloat16]
# Shape, tile, group size: for each decoder, groups that are wider and narrower than tiles and cut by the end of a row,
# and some that are unpacked.
SHAPES = [
    ((64, 128), 64, 64),
    ((64, 96), 32, 32),
    ((128, 256), 128, 128),
    ((48, 192), 64, 128),
    ((64, 320), 64, 192),
    ((64, 224), 32, 96),
    ((256, 192), 64, 1000),
    ((7, 160), 160, 64),
    ((96, 64), 96, 20),
    ((24, 36), 12, 8),
    ((25, 100), 100, 64),
    ((5, 4), 128, 128),
    ((2048, 768), 128, 192),  # decoded in several blocks
    ((64, 160), 32, 48),
]


def random_inputs(rows: int, columns: int, dtype: torch.dtype, whole: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    if whole:
        return torch.randint(-4, 5, (rows, columns), generator=generator).to(dtype)
    return torch.randn(rows, columns, generator=generator).to(dtype)


def assert_product(found: Tensor, inputs: Tensor, masked: Tensor, exact: bool = False) -> None:
    """Check products within the error of fp32 sums; in bf16 weights that are not ``exact`` may be rounded too."""
    expected, sizes = inputs.double() @ masked.T, inputs.double().abs() @ masked.abs().T
    bound = 2**-24 * (masked.shape[1] + 1) * sizes
    if found.dtype == torch.bfloat16:
        bound += 2**-8 * (expected.abs() + bound + (0 if exact else sizes))
    assert found.dtype == inputs.dtype and found.shape == expected.shape
    worst = ((found.double() - expected).abs() - bound).max()
    assert worst <= 0, worst


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "tile", "group_size"), SHAPES)
def test_a_product_is_that_of_the_dequantized_weight(
    shape: tuple, tile: int, group_size: int, dtype: torch.dtype, instructions: str, coded_weight: Callable
) -> None:
    steps = min(shape[1], tile) % 32 == min(shape[1], group_size) % 32 == 0
    for fraction in (0.0, 0.5, 1.0):
        made = coded_weight(shape, tile, group_size, fraction)
        packed = made.packed
        for rows in ROWS:
            inputs = random_inputs(rows, shape[1], dtype)
            assert compiled.supports(packed, inputs) is None
            found = compiled.multiply(packed, inputs)
            assert_product(found, inputs, made.masked, exact=steps and rows <= min(compiled.BF16_GEMV_ROWS.values()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "tile", "group_size"), SHAPES)
def test_whole_numbers_are_exact(
    shape: tuple, tile: int, group_size: int, dtype: torch.dtype, instructions: str, coded_weight: Callable
) -> None:
    """Sums of small integers are exact in fp32 in any order; bf16 rounds ties to even."""
    made = coded_weight(shape, tile, group_size, whole=True, fewer=True)
    for rows in ROWS:
        inputs = random_inputs(rows, shape[1], dtype, whole=True)
        inputs[-1] *= 32
        expected = (inputs.double() @ made.masked.T).to(dtype)
        assert torch.equal(compiled.multiply(made.packed, inputs), expected), rows


@pytest.mark.parametrize(("shape", "tile", "group_size"), SHAPES)
def test_unpacked_weights_are_equal_bit_for_bit(
    shape: tuple, tile: int, group_size: int, instructions: str, coded_weight: Callable
) -> None:
    made = coded_weight(shape, tile, group_size)
    parts, kernel = made.packed.checked, compiled.load(instructions)
    struct, reference, _ = compiled._native(parts, kernel)
    struct.threads = 2
    for dtype in DTYPES:
        for first, last in ((0, parts.dense.shape[0]), (parts.dense.shape[0] - 1, parts.dense.shape[0])):
            found = torch.full(((last - first) * parts.height, shape[1]), torch.nan, dtype=dtype)
            kernel.codes_unpack(reference, first, last, found.data_ptr(), dtype == torch.bfloat16)
            expected = made.masked.float()[first * parts.height : last * parts.height].to(dtype)
            integers = torch.int32 if dtype == torch.float32 else torch.int16
            assert torch.equal(found.view(integers), expected.view(integers))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "tile", "group_size"), [((256, 256), 128, 128), ((64, 96), 32, 32), ((96, 64), 96, 20)]
)
def test_any_number_of_threads_is_the_same_bit_for_bit(
    shape: tuple,
    tile: int,
    group_size: int,
    dtype: torch.dtype,
    instructions: str,
    threads: Callable,
    coded_weight: Callable,
) -> None:
    packed = coded_weight(shape, tile, group_size).packed
    for rows in (1, 2, 4, 7, 33):
        inputs, found = random_inputs(rows, shape[1], dtype), []
        for count in (1, 2, 4):
            threads(count)
            found.append(compiled.multiply(packed, inputs))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]), rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_many_pages(dtype: torch.dtype, instructions: str, coded_weight: Callable) -> None:
    """The weight is moved to large pages."""
    made = coded_weight((2176, 1024), 128, 128, 0.3)
    packed = made.packed
    values = packed.values.clone()
    for rows in (1, 18):
        inputs = random_inputs(rows, 1024, dtype)
        assert_product(compiled.multiply(packed, inputs), inputs, made.masked)
    assert torch.equal(packed.values, values)


@pytest.mark.parametrize(("shape", "tile", "group_size"), [SHAPES[0], SHAPES[1], SHAPES[9]])
def test_bits_that_do_not_keep_two_of_four_lead_nowhere(
    shape: tuple, tile: int, group_size: int, instructions: str, coded_weight: Callable
) -> None:
    """Such bits follow from writes that PyTorch does not count; outputs of dense tiles stay right."""
    made = coded_weight(shape, tile, group_size, 0.2)
    made.dense[0], made.mask[:tile] = True, True
    made.dense[-1], made.mask[-tile:] = False, torch.tensor([True, False, False, True]).repeat(shape[1] // 4)
    packed = made.packed
    for rows in (1, 12):
        packed = made.packed
        inputs = random_inputs(rows, shape[1], torch.float32)
        expected = compiled.multiply(packed, inputs)
        generator = torch.Generator().manual_seed(rows)
        packed.bits.numpy()[:] = torch.randint(256, packed.bits.shape, generator=generator, dtype=torch.uint8).numpy()
        found = compiled.multiply(packed, inputs)
        packed.bits.numpy()[:] = 0
        compiled.multiply(packed, inputs)
        if shape[0] > tile:
            assert torch.equal(found[:, :tile], expected[:, :tile]) and not torch.equal(found, expected)


def test_no_inputs_and_inputs_that_are_not_contiguous(instructions: str, coded_weight: Callable) -> None:
    packed, base = coded_weight((64, 128), 64, 64).packed, random_inputs(24, 256, torch.bfloat16)
    assert compiled.multiply(packed, base[:0, :128]).shape == (0, 64)
    for inputs in (base[:4:2, :128], base[:3, ::2], base[::2, :128]):
        assert torch.equal(compiled.multiply(packed, inputs), compiled.multiply(packed, inputs.clone().contiguous()))


def test_reasons_are_named(instructions: str, coded_weight: Callable) -> None:
    packed = coded_weight((64, 128), 64, 64).packed
    inputs = torch.ones(2, 128)
    assert compiled.supports(packed, inputs.half()) == "inputs in torch.float16; expected float32 or bfloat16"
    odd = coded_weight((64, 128), 64, 7).packed
    assert compiled.supports(odd, inputs) == "groups of 7 columns; expected a multiple of four"
    assert backend_for(odd, inputs) is unpacked.multiply
    with pytest.raises(InputError, match="groups of 7 columns"):
        compiled.multiply(odd, inputs)
    assert "no backward pass" in compiled.supports(packed, inputs.requires_grad_())
    with pytest.raises(InputError, match="do not fit the weight"):
        compiled.multiply(packed, inputs.detach().half())
    assert backend_for(packed, inputs.detach()) is compiled.multiply


def test_a_group_beyond_the_numbers_of_c(instructions: str, coded_weight: Callable) -> None:
    made = coded_weight((64, 128), 64, 2**64 + 1)
    packed, inputs = made.packed, random_inputs(2, 128, torch.float32)
    assert torch.equal(unpack(packed), made.masked.float())
    assert_product(compiled.multiply(packed, inputs), inputs, made.masked)


def test_no_read_beyond_the_end_of_a_part() -> None:
    script = Path(__file__).with_name("guarded_codes.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 10 * len(compiled.available()) + 75
