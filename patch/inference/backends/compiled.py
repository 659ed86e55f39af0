"""C++ backend for the CPU, compiled for the processor's instructions on first use and cached.

With few rows of inputs, as in decoding, memory bandwidth is the limit, and the packed weight is expanded in registers.
With more, arithmetic is the limit: products with zeros are skipped, unless the processor multiplies bf16 fast enough,
by AMX or by dot products of pairs. Tiles of other sizes are unpacked into a block that fits the caches, which PyTorch
multiplies. The codes of a quantized weight are decoded in registers too, or with more rows into a block of an ordinary
packed weight.
"""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference.backends import common_reason
from patch.inference.checked import CheckedParts
from patch.inference.packed import PackedWeight
from patch.native import NoCompiler, library, processor

SOURCE = Path(__file__).parent / "kernels/packed_linear.cpp"
# Instruction sets, the fastest first, with the processor features that each needs, which are also compiler flags.
AVX2 = ("avx2", "fma")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
INSTRUCTIONS = {
    "amx": (*AVX512, "avx512vbmi2", "avx512bf16", "amx-tile", "amx-bf16"),
    "avx512-bf16": (*AVX512, "avx512vbmi2", "avx512bf16"),
    "avx512-vbmi2": (*AVX512, "avx512vbmi2"),
    "avx512": AVX512,
    "avx2": AVX2,
    "portable": (),
}
# Environment variable that selects an instruction set other than the fastest.
CHOICE = "PATCH_INSTRUCTIONS"
DTYPES = (torch.float32, torch.bfloat16)
# Largest number of input rows for the kernels that read memory at the limit, by the instructions for bf16 and whether
# the weight has codes.
GEMV_ROWS = 4
BF16_GEMV_ROWS = {("amx", False): 2, ("amx", True): 2, ("avx512-bf16", True): 8}
# With more rows, PyTorch's products of unpacked weights use AMX better.
GEMM_ROWS_AMX = 1024
# Number of weights unpacked at a time.
BLOCK = 1 << 21
# Key in `CheckedParts.cache` of the result of `_native`.
CACHE_KEY = "compiled"
log = logging.getLogger(__name__)


class _Packed(ctypes.Structure):
    """The C++ struct `Packed`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "bits", "dense", "offsets", "scales")),
        *((name, ctypes.c_int64) for name in ("tile_rows", "tile_columns", "height", "width", "groups", "group_size")),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("bf16", "threads")),
    ]


def available() -> list[str]:
    """Return the instruction sets that this processor has, the fastest first."""
    # The compiler and `/proc/cpuinfo` spell them differently.
    flags = {flag.replace("amx_", "amx-").replace("_", "") for flag in processor()}
    return [name for name, needed in INSTRUCTIONS.items() if flags.issuperset(needed)]


@cache
def load(instructions: str) -> ctypes.CDLL:
    """Return the library for a set of instructions.

    Raises:
        NoCompiler, OSError, InputError: see `patch.native.build`.
    """
    flags = tuple(f"-m{name}" for name in INSTRUCTIONS[instructions])
    found = library(SOURCE, flags)
    struct, pointer, number, flag = ctypes.POINTER(_Packed), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    arguments = {
        "packed_gemv": [struct, pointer, pointer, number],
        "packed_gemm": [struct, pointer, pointer, number],
        "packed_unpack": [struct, number, number, pointer],
        "codes_gemv": [struct, pointer, pointer, number, flag],
        "codes_gemm": [struct, pointer, pointer, number, flag],
        "codes_unpack": [struct, number, number, pointer, flag],
        "use_large_pages": [pointer, number],
    }
    for name, types in arguments.items():
        function = getattr(found, name)
        function.argtypes, function.restype = types, None
    return found


@cache
def _kernel() -> tuple[str, ctypes.CDLL] | str:
    """Return the instruction set in use and its library, or the reason why there is none.

    Raises:
        InputError: the processor lacks the chosen set, or others can write the folder of compiled libraries.
    """
    choice, reason = os.environ.get(CHOICE), ""
    if choice is not None and choice not in available():
        raise InputError(f"{CHOICE} is {choice!r}; this processor has {', '.join(available())}")
    names = available() if choice is None else [choice]
    for name in names:
        try:
            found = load(name)
        except (NoCompiler, OSError) as error:  # an old compiler may not know the newest instructions
            reason = reason or str(error)
            continue
        if reason:
            log.warning(
                "packed weights are multiplied with %s instructions, slower than %s: %s", name, names[0], reason
            )
        return name, found
    warnings.warn(f"packed weights are multiplied by plain PyTorch, slower than dense ones: {reason}", stacklevel=2)
    return reason


def supports(packed: PackedWeight, inputs: Tensor) -> str | None:
    """Return None if these can be multiplied, else the reason; see `patch.inference.backends`."""
    if not inputs.is_cpu:
        return f"runs on a CPU, not on {inputs.device}"
    if reason := common_reason(packed, inputs, DTYPES, quantized=True):
        return reason
    if reason := _group_reason(packed.checked):
        return reason
    kernel = _kernel()
    return kernel if isinstance(kernel, str) else None


def _group_reason(parts: CheckedParts) -> str | None:
    """Return the reason why the groups of a quantized weight are not supported; None if they are."""
    if parts.group_size is None or parts.group_size % 4 == 0:
        return None
    return f"groups of {parts.group_size} columns; expected a multiple of four"


def _native(parts: CheckedParts, kernel: ctypes.CDLL) -> tuple[_Packed, Any, tuple[torch.dtype, ...]]:
    """Return the C++ struct of a weight, a reference to it, and the dtypes of its inputs.

    The weight is moved to large pages, which are read faster.

    Raises:
        InputError: the weight has a dtype, a device or groups that the library does not support.
    """
    (rows, columns), values, bits, scales = parts.dense.shape, parts.values, parts.bits, parts.scales
    dtypes = DTYPES if scales is not None else (values.dtype,)
    if not values.is_cpu or not set(dtypes) <= set(DTYPES):
        raise InputError(f"a weight in {values.dtype} on {values.device}; expected float32 or bfloat16 on the CPU")
    if reason := _group_reason(parts):
        raise InputError(reason)
    struct = _Packed(
        *(part.data_ptr() for part in (values, bits, parts.dense, parts.offsets)),
        None if scales is None else scales.data_ptr(),
        *(rows, columns, parts.height, parts.width),
        *((0, 0) if scales is None else (scales.shape[1], parts.group_size)),
        parts.shape[0],
        *(values.dtype == torch.bfloat16, 0),
    )
    for part in (values, bits):
        kernel.use_large_pages(part.data_ptr(), part.nbytes)
    return struct, ctypes.byref(struct), dtypes


def multiply(packed: PackedWeight, inputs: Tensor) -> Tensor:
    """Return the product; see `patch.inference.backends`."""
    instructions, kernel = _kernel()
    parts = packed.checked
    known = parts.cache.get(CACHE_KEY)
    if known is None:
        known = parts.cache[CACHE_KEY] = _native(parts, kernel)
    struct, reference, dtypes = known
    struct.threads = torch.get_num_threads()
    inputs = inputs.contiguous()
    (rows, columns), shape = parts.shape, inputs.shape
    if (
        len(shape) != 2
        or shape[1] != columns
        or inputs.dtype not in dtypes
        or not inputs.is_cpu
        or inputs.untyped_storage().nbytes() < inputs.nbytes
    ):
        raise InputError(f"inputs of {list(shape)} in {inputs.dtype} on {inputs.device} do not fit the weight")
    count = shape[0]
    output = inputs.new_empty(count, rows)
    bf16 = inputs.dtype is torch.bfloat16
    coded = parts.scales is not None
    name, flag, group_size = ("codes", (bf16,), parts.group_size) if coded else ("packed", (), 32)
    addresses = reference, inputs.data_ptr(), output.data_ptr(), count
    amx = instructions == "amx" and bf16
    few = BF16_GEMV_ROWS.get((instructions, coded), GEMV_ROWS) if bf16 else GEMV_ROWS
    if count <= few and parts.width % 32 == group_size % 32 == 0:
        getattr(kernel, f"{name}_gemv")(*addresses, *flag)
    elif parts.width % 16 == parts.height % 16 == 0 and not (amx and count > GEMM_ROWS_AMX):
        getattr(kernel, f"{name}_gemm")(*addresses, *flag)
    else:
        unpack = getattr(kernel, f"{name}_unpack")
        _multiply_unpacked(parts, lambda *block: unpack(reference, *block, *flag), inputs, output)
    return output


def _multiply_unpacked(
    parts: CheckedParts, unpack: Callable[[int, int, int], None], inputs: Tensor, output: Tensor
) -> None:
    """Write the product to ``output``; ``unpack`` writes rows of tiles, from a first up to a last, to an address."""
    rows, height, columns = parts.dense.shape[0], parts.height, parts.shape[1]
    step = max(1, min(rows, BLOCK // (height * columns)))
    buffer = inputs.new_empty(step * height, columns)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        block = buffer[: (last - first) * height]
        unpack(first, last, block.data_ptr())
        torch.mm(inputs, block.T, out=output[:, first * height : last * height])
