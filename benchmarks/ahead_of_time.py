"""Triton kernels compiled for GPUs that are not there, and the resources that they take.

Triton's wheel has NVIDIA's assembler and disassembler, so no driver, card or CUDA build of PyTorch is needed.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from patch.inference.backends import fused as products
from patch.masks import proximal
from patch.masks.kernels import fused as masks
from patch.masks.kernels import proximal_triton

# Side of a tile, and the dtype of weights and inputs.
TILE, HALF = 128, "bf16"
POINTERS = {
    **dict.fromkeys(("weight", "gradient", "masked", "result", "inputs", "values"), f"*{HALF}"),
    **dict.fromkeys(("logits", "logits_gradient", "tile_density", "density_terms", "norms", "norm_gradient"), "*fp32"),
    **{"penalties": "*fp32", "sparse": "*i32", "bits": "*u8", "dense": "*i1", "offsets": "*i64", "output": "*fp32"},
}
NUMBERS = dict.fromkeys(("scale", "temperature", "strength"), "fp32")
# Arguments that are divisible by 16 in layers whose sides are: Triton compiles these kernels for them.
DIVISIBLE = (
    *(*POINTERS, "out", "stride"),
    *("count", "groups", "first_group", "plane", "logits_group", "all_groups", "height", "tile_groups"),
)


@dataclass(frozen=True)
class Architecture:
    """Limits of a streaming multiprocessor (NVIDIA's CUDA C++ Programming Guide, "Compute Capabilities").

    Attributes:
        capability: compute capability times ten.
        warps: largest number of resident warps.
        blocks: largest number of resident blocks, Triton's programs.
        shared: bytes of shared memory of all blocks.
        shared_of_block: largest number of bytes of one block; each takes 1024 more.
    """

    capability: int
    warps: int
    blocks: int
    shared: int
    shared_of_block: int
    registers: int = 65_536


ARCHITECTURES = [
    Architecture(80, 64, 32, 164 * 1024, 163 * 1024),
    Architecture(86, 48, 16, 100 * 1024, 99 * 1024),
    Architecture(90, 64, 32, 228 * 1024, 227 * 1024),
    Architecture(100, 64, 32, 228 * 1024, 227 * 1024),
]


@dataclass(frozen=True, eq=False)
class Kernel:
    """One kernel in one configuration.

    Attributes:
        name: name for the table.
        function: the Triton function.
        constants: its compile-time constants.
        warps, stages: options of the compiler.
    """

    name: str
    function: Any
    constants: dict[str, Any]
    warps: int
    stages: int = 3


@dataclass(frozen=True)
class Resources:
    """Resources of a compiled kernel.

    Attributes:
        registers: registers of a thread.
        spilled: bytes of local memory of a thread, which the compiler uses when registers do not suffice.
        shared: bytes of shared memory of a block.
        blocks: number of blocks that a multiprocessor holds at a time.
        occupancy: resident warps, as a fraction of the largest number.
        matrix: number of instructions for the tensor cores.
        asynchronous: number of asynchronous copies of sixteen bytes a thread.
    """

    registers: int
    spilled: int
    shared: int
    blocks: int
    occupancy: float
    matrix: int
    asynchronous: int


@cache
def mask_kernels() -> tuple[Kernel, ...]:
    """Return the kernels of the masks, for each kind of mask that is learned."""
    kernels = []
    kinds = {"joint": (True, True), "tile": (False, True), "2:4": (True, False)}
    for (kind, (learned, tiled)), hard in itertools.product(kinds.items(), (False, True)):
        if hard and not learned:
            continue
        name = f"{kind}, hard" if hard else kind
        shared = {"LEARNED": learned, "TILED": tiled, "HARD": hard, "SIZE": masks.GROUPS}
        kernels.append(Kernel(f"mask, {name}", masks._forward, shared, masks.WARPS))
        part = TILE // 4 if tiled else masks.GROUPS
        gradients = {"WANTED": learned, "MASKED": True, "ADD": True, "PART": part}
        kernels.append(Kernel(f"mask gradient, {name}", masks._backward, shared | gradients, masks.WARPS))
    return tuple(kernels)


@cache
def proximal_kernel() -> Kernel:
    """Return ProxSparse's proximal operator."""
    constants = proximal._CONSTANTS | {"SIZE": proximal_triton.GROUPS}
    return Kernel("proximal operator", proximal_triton._shrink, constants, proximal_triton.WARPS)


def product_kernels(rows: int) -> tuple[Kernel, ...]:
    """Return the packed product of hybrid weights in every configuration that is tried for a number of input rows."""
    return _product_kernels(products.padded(rows) if rows <= products.FEW else None)


@cache
def _product_kernels(few: int | None) -> tuple[Kernel, ...]:
    configs = products.FEW_CONFIGS if few else products.MANY_CONFIGS
    constants = {"HEIGHT": TILE, "WIDTH": TILE, "DENSE": True, "SPARSE": True, "FP32": False}
    constants |= {"ROWS": few} if few else {}
    return tuple(product_kernel(constants | config.kwargs, config.num_warps, config.num_stages) for config in configs)


def product_kernel(constants: dict[str, Any], warps: int, stages: int) -> Kernel:
    """Return the packed product in one configuration."""
    rows, high, depth = (constants[name] for name in ("ROWS", "HIGH", "DEPTH"))
    name = f"product, {rows} rows x {high} outputs x {depth}, {warps} warps, {stages} stages"
    return Kernel(name, products._multiply, constants, warps, stages)


@cache
def compiled(kernel: Kernel, architecture: Architecture) -> Resources:
    """Compile a kernel for an architecture.

    Raises:
        Exception: Triton or the assembler cannot compile it.
    """
    names, constants = kernel.function.arg_names, kernel.constants
    kinds = POINTERS | NUMBERS | {"bits": "*i16" if kernel.function is products._multiply else "*u8"}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    source = ASTSource(
        kernel.function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in DIVISIBLE if name in names},
    )
    target = GPUTarget("cuda", architecture.capability, 32)
    made = triton.compile(source, target=target, options={"num_warps": kernel.warps, "num_stages": kernel.stages})
    registers, spilled = _usage(made.asm["cubin"])
    shared = made.metadata.shared
    blocks = _resident(architecture, registers, shared, kernel.warps)
    ptx = made.asm["ptx"]
    return Resources(
        *(registers, spilled, shared, blocks, blocks * kernel.warps / architecture.warps),
        len(re.findall(r"^\s*(?:@%p\d+ )?(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)", ptx, re.M)),
        len(re.findall(r"cp\.async\.cg\.shared\.global|cp\.async\.bulk\.tensor", ptx)),
    )


def faults(kernel: Kernel, architecture: Architecture) -> list[str]:
    """Return what makes a kernel slow or impossible on an architecture, which is nothing if it is well made."""
    found, product = compiled(kernel, architecture), kernel.function is products._multiply
    limit = architecture.shared_of_block
    named = {
        f"spills {found.spilled} bytes": found.spilled > 0,
        f"needs {found.shared} bytes of shared memory, a block has {limit}": found.shared > limit,
        "no block fits a multiprocessor": found.blocks < 1,
        "does not use the tensor cores": product and found.matrix == 0,
        "has no asynchronous copies": product and found.asynchronous == 0,
    }
    return [name for name, is_there in named.items() if is_there]


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return the registers of a thread and its bytes of local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    return int(found[1]), int(found[2]) + int(found[3])


def _resident(architecture: Architecture, registers: int, shared: int, warps: int) -> int:
    """Return how many blocks a multiprocessor holds; registers are allocated by 256 for a warp."""
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = architecture.registers // of_warp // warps
    by_shared = architecture.shared // (shared + 1024)
    return min(by_registers, by_shared, architecture.warps // warps, architecture.blocks)
