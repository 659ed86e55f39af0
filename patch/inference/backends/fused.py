"""Triton backend for a GPU: a fused kernel that expands the packed weight in registers, not in memory.

A program computes a block of outputs from one row of tiles and iterates along it, some columns of a tile at a time.
With few rows of inputs, the speed of reading the weight is the limit; with many, the tensor cores must not wait for
loads:

- All loads are the same for both kinds of tiles: eight values for every sixteen weights, and eight more (masked for
  sparse tiles, and so not read) for dense tiles. Triton pipelines the loads of a loop only if no load is within a
  branch, so only the expansion of the values in registers branches. A tile begins where the one before it ends, so no
  load depends on an address that another one reads.
- Eight values of two bytes are one load of sixteen bytes, and their sixteen bits one word, so a thread has all that it
  expands. The weights are put back in order and multiplied by one `tl.dot` over all columns: four dots, one for each
  position in a group, would need every fourth of the inputs, two bytes each, which no asynchronous copy can load.
- The weight is the left operand. Its 64 rows fill Hopper's instruction, which reads the left operand from registers,
  and the inputs, as the right operand, may have as few as 16 rows.
- With few programs the columns are split among more (split K), each of which writes its own sum; the sums are then
  added in order, without atomics. The number of splits follows from the shapes and the GPU, not from timing, and the
  tuned configuration is cached on disk, so results do not differ between runs.

With TRITON_INTERPRET=1 the kernel runs on a CPU too, for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from patch.errors import InputError
from patch.inference import backends
from patch.inference.backends import common_reason
from patch.inference.packed import PackedWeight

# Up to this number of input rows, the kernel is limited by reading the weight.
FEW = 64
# Above this number, more rows do not change the best configuration.
MANY = 4096
# Target number of programs per multiprocessor of the GPU, and the least number of columns of one.
PROGRAMS = 4
COLUMNS = 256


@triton.jit
def _expand(kept, word, DEPTH: tl.constexpr):  # noqa: ANN001, ANN202
    """Expand `[rows, DEPTH / 16, 8]` values, two per group, by `[rows, DEPTH / 16]` bit masks to `[rows, DEPTH]`."""
    first, second = tl.split(tl.reshape(kept, (kept.shape[0], DEPTH // 16, 4, 2)))
    group = word.to(tl.int32)[:, :, None] >> (4 * tl.arange(0, 4))[None, None, :]
    zero = tl.zeros_like(first)
    # The first weight of a group can only be the first value, the last weight only the second.
    w0 = tl.where((group & 1) != 0, first, zero)
    w1 = tl.where((group & 2) != 0, tl.where((group & 1) != 0, second, first), zero)
    w2 = tl.where((group & 4) != 0, tl.where((group & 3) != 0, second, first), zero)
    w3 = tl.where((group & 8) != 0, second, zero)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (kept.shape[0], DEPTH))


@triton.jit
def _concatenate(half, other, DEPTH: tl.constexpr):  # noqa: ANN001, ANN202
    """Join the first and the last eight of every sixteen weights to `[rows, DEPTH]`."""
    return tl.reshape(tl.permute(tl.join(half, other), (0, 1, 3, 2)), (half.shape[0], DEPTH))


@triton.jit(do_not_specialize=["rows", "tiles", "split", "bucket"])
def _multiply(
    inputs,
    values,
    bits,
    dense,
    offsets,
    output,
    rows,
    out,
    tile_columns,
    tiles,
    stride,
    split,
    bucket,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DENSE: tl.constexpr,
    SPARSE: tl.constexpr,
    FP32: tl.constexpr,
    ROWS: tl.constexpr,
    HIGH: tl.constexpr,
    DEPTH: tl.constexpr,
):  # noqa: ANN001, ANN202
    STEPS: tl.constexpr = WIDTH // DEPTH
    HALF: tl.constexpr = HEIGHT * WIDTH // 2
    # Programs that run at the same time share inputs and weights.
    block, out_block = tl.swizzle2d(tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), 8)
    column = tl.program_id(2) * split
    end = tl.minimum(column + split, tile_columns)
    row = block * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[None, :]
    inputs += (block * ROWS).to(tl.int64) * stride
    inputs += (tl.arange(0, ROWS) * stride)[None, :] + tl.arange(0, DEPTH)[:, None]
    # All rows of a program are in one row of tiles.
    tile_row = out_block * HIGH % HEIGHT + tl.arange(0, HIGH)
    sixteen = tl.arange(0, DEPTH // 16)
    first = out_block * HIGH // HEIGHT * tile_columns
    tile = first + column
    # The number of weights of a tile is a multiple of 256, which permits vector loads.
    values += tl.multiple_of(tl.load(offsets + tile), 16)
    bits += tl.multiple_of(tl.load(offsets + tiles + tile) // 2, 16)
    full = (tl.load(dense + tile) != 0) if SPARSE else True
    total = tl.zeros((HIGH, ROWS), tl.float32)
    for i in range(column * STEPS, end * STEPS):
        step = i % STEPS
        x = tl.load(inputs + i * DEPTH, mask=inside, other=0.0)
        # Number of stored values for every two weights.
        halves = (tl.where(full, 2, 1) if SPARSE else 2) if DENSE else 1
        index = (tile_row * (WIDTH // 2))[:, None, None] + step * (DEPTH // 2) + (sixteen * 8)[None, :, None]
        pointers = values + halves * index + tl.arange(0, 8)[None, None, :]
        kept = tl.load(pointers)
        if SPARSE:
            words = bits + (tile_row * (WIDTH // 16))[:, None] + step * (DEPTH // 16) + sixteen[None, :]
            if DENSE:
                # The interpreter accepts no scalar such as `full` as a mask.
                word = tl.load(words, mask=tl.full((1, 1), halves, tl.int32) == 1, other=0)
                other = tl.load(pointers + 8, mask=tl.full((1, 1, 1), halves, tl.int32) == 2, other=0.0)
                weight = _concatenate(kept, other, DEPTH) if full else _expand(kept, word, DEPTH)
            else:
                weight = _expand(kept, tl.load(words), DEPTH)
        else:
            weight = _concatenate(kept, tl.load(pointers + 8), DEPTH)
        # A branch around these would prevent pipelining.
        last = step == STEPS - 1
        values += tl.where(last, halves * HALF, 0)
        if SPARSE:
            bits += tl.where(last, (2 - halves) * (HALF // 8), 0)
            if DENSE:
                full = tl.load(dense + first + tl.minimum((i + 1) // STEPS, end - 1)) != 0
        if FP32:
            weight, x = weight.to(tl.float32), x.to(tl.float32)
        total = tl.dot(weight, x, total, input_precision="ieee")
    output += (tl.program_id(2).to(tl.int64) * rows + row[None, :]) * out
    output += (out_block * HIGH + tl.arange(0, HIGH))[:, None]
    tl.store(output, total.to(output.dtype.element_ty), mask=inside)


# True if Triton's interpreter runs the kernel instead of a GPU.
INTERPRETED = not isinstance(_multiply, triton.runtime.JITFunction)


def _config(rows: int | None, high: int, depth: int, warps: int, stages: int) -> triton.Config:
    return triton.Config(({"ROWS": rows} if rows else {}) | {"HIGH": high, "DEPTH": depth}, warps, stages)


# Rows of inputs and of weights, columns, warps, stages. Few input rows fit one block, whose size the caller gives.
FEW_CONFIGS = [
    _config(None, 64, 64, 4, 4),
    _config(None, 64, 128, 4, 3),
    _config(None, 128, 64, 4, 4),
    _config(None, 128, 64, 8, 4),
    _config(None, 32, 128, 4, 4),
    _config(None, 32, 64, 2, 5),
]
MANY_CONFIGS = [
    _config(64, 64, 64, 4, 4),
    _config(64, 128, 64, 4, 3),
    _config(128, 64, 64, 4, 3),
    _config(128, 128, 32, 8, 4),
    _config(128, 128, 64, 8, 3),
]


def _fitted(configs: list[triton.Config], arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """Return the configurations with sizes of blocks reduced to powers of two that divide the tile."""
    limits = {"HIGH": constants["HEIGHT"] & -constants["HEIGHT"], "DEPTH": constants["WIDTH"] & -constants["WIDTH"]}
    if arguments["values"].dtype == torch.float32:
        # Tensor cores do not multiply in full fp32, and the other units need more registers.
        limits |= {"DEPTH": min(32, limits["DEPTH"]), "ROWS": 128}
    found = {}
    for config in configs:
        sides = {name: min(side, limits.get(name, side)) for name, side in config.kwargs.items()}
        fitted = triton.Config(sides, config.num_warps, config.num_stages)
        found[str(fitted)] = fitted
    return list(found.values())


def _tuned(configs: list[triton.Config]) -> Callable[..., None]:
    """Return the kernel with the fastest configuration for a key; configurations are cached on disk."""
    key = ["bucket", "out", "tile_columns", "HEIGHT", "WIDTH", "DENSE", "SPARSE"]
    pruning = {"early_config_prune": _fitted}
    return triton.autotune(configs, key, prune_configs_by=pruning, cache_results=True)(_multiply)


_few, _many = _tuned(FEW_CONFIGS), _tuned(MANY_CONFIGS)


@cache
def _processors(device: torch.device) -> int:
    return 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _too_old(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0)


def supports(packed: PackedWeight, inputs: Tensor) -> str | None:
    """Return None if these can be multiplied, else the reason; see `patch.inference.backends`."""
    device = packed.values.device
    if not INTERPRETED and device.type != "cuda":
        return f"runs on a GPU, not on {device}"
    if reason := common_reason(packed, inputs, (torch.bfloat16, torch.float16, torch.float32)):
        return reason
    if not INTERPRETED and _too_old(device):
        return f"{torch.cuda.get_device_name(device)} is older than Triton's tensor cores, compute capability 8.0"
    checked = packed.checked
    if checked.height % 16 or checked.width % 16:
        return f"tiles of {checked.height}x{checked.width}; both sides must be multiples of 16"
    return None


def padded(rows: int) -> int:
    """Return the rows of a block for a few rows of inputs: a power of two, and at least the tensor cores' smallest."""
    return max(16, triton.next_power_of_2(rows))


def splits(shape: tuple[int, int], tile_columns: int, rows: int, processors: int) -> tuple[int, int]:
    """Return the number of splits of the columns, and the tiles of each split, of which the last may have fewer.

    There are as many splits as give the GPU enough programs, if each keeps enough columns.

    Args:
        shape: `[out, in]` of the weight.
        tile_columns: number of tiles along the columns.
        rows: number of rows of inputs.
        processors: number of the GPU's multiprocessors.
    """
    out, columns = shape
    programs = triton.cdiv(rows, FEW if rows <= FEW else 128) * triton.cdiv(out, 64)
    wanted = PROGRAMS * processors // programs
    split = triton.cdiv(tile_columns, max(1, min(wanted, tile_columns, columns // COLUMNS)))
    return triton.cdiv(tile_columns, split), split


def multiply(packed: PackedWeight, inputs: Tensor) -> Tensor:
    """Return the product (see `patch.inference.backends`).

    The kernel autotunes on first use; warm up before CUDA-graph capture.
    """
    reason, (out, columns) = supports(packed, inputs), packed.checked.shape
    if reason or inputs.shape[1] != columns:
        raise InputError(reason or f"inputs of {inputs.shape[1]} columns; expected {columns}")
    rows = len(inputs)
    if not rows:
        return inputs.new_empty(0, out)
    if inputs.stride(1) != 1:
        inputs = inputs.contiguous()
    tile_columns = packed.checked.dense.shape[1]
    count, split = splits((out, columns), tile_columns, rows, _processors(packed.values.device))
    output = inputs.new_empty(count, rows, out, dtype=torch.float32 if count > 1 else inputs.dtype)
    with torch.cuda.device_of(inputs):
        _launch(packed, inputs, output, split)
        return output[0] if count == 1 else output.sum(0).to(inputs.dtype)


def _launch(packed: PackedWeight, inputs: Tensor, output: Tensor, split: int) -> None:
    count, rows, out = output.shape
    few = rows <= FEW
    checked = packed.checked
    tiles = checked.dense.numel()
    constants = {
        "HEIGHT": checked.height,
        "WIDTH": checked.width,
        # The kernel does not check for a kind of tiles that the weight lacks.
        "DENSE": checked.values.numel() * 2 > checked.tile_weights * tiles,
        "SPARSE": checked.bits.numel() > 0,
        # The interpreter would multiply the bits of bfloat16 numbers as integers.
        "FP32": INTERPRETED,
    } | ({"ROWS": padded(rows)} if few else {})
    arguments = (inputs, checked.values, checked.bits.view(torch.int16), checked.dense, checked.offsets, output)
    numbers = rows, out, checked.dense.shape[1], tiles, inputs.stride(0), split, min(padded(rows), MANY)

    def grid(sizes: dict[str, int]) -> tuple[int, int, int]:
        return out // sizes["HIGH"], triton.cdiv(rows, sizes["ROWS"]), count

    kernel = _few if few else _many
    if INTERPRETED or not backends.tuning():
        config = _fitted(FEW_CONFIGS if few else MANY_CONFIGS, {"values": checked.values}, **constants)[0]
        kernel, constants = _multiply, constants | config.all_kwargs()
    kernel[grid](*arguments, *numbers, **constants)
