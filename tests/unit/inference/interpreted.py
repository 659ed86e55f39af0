"""Comparison of the Triton kernel of packed weights with plain PyTorch: a program for Triton's interpreter."""

import sys

import torch

from patch.inference.linear import HybridLinear
from patch.inference.packed import PackedWeight, pack, unpack

TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


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


def check(out, columns, tile, share, dtype, rows, programs=4):
    from patch.inference.backends import fused

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
    return fused.splits((out, columns), packed.dense.shape[1], rows, 1)[0]


def reason(packed, inputs):
    from patch.inference.backends import fused

    return fused.supports(packed, inputs)


def check_products() -> None:
    """Check products of many shapes, and the reasons for unsupported weights and inputs."""
    from patch.inference.backends import fused

    fused.COLUMNS = 16
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
    found = [
        check(32, 160, 32, 0.5, torch.float32, rows, programs) for rows in (3, 70) for programs in (1, 2, 3, 4, 100)
    ]
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
    assert torch.equal(
        fused.multiply(type(packed)(packed.shape, 32, columns_first, packed.values, packed.bits), weight),
        fused.multiply(packed, weight),
    )
    assert "float64" in reason(packed_weight(32, 32, 16, 0.5, torch.float64), torch.zeros(1, 32))
    assert "inputs in torch.float16" in reason(packed, torch.zeros(1, 96, dtype=torch.float16))
    assert "24x24" in reason(packed_weight(48, 48, 24, 0.5, torch.float32), torch.zeros(1, 48))
    assert "meta" in reason(packed, torch.zeros(1, 96, device="meta"))
    asking = torch.zeros(1, 96, requires_grad=True)
    assert "backward" in reason(packed, asking)
    with torch.no_grad():
        assert reason(packed, asking) is None


def count_asynchronous_loads() -> None:
    """Compile the kernel for two generations of GPUs, and print the number of asynchronous loads of each."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from patch.inference.backends import fused

    names = fused._multiply.arg_names
    kinds = dict.fromkeys(("inputs", "values"), "*bf16") | {"bits": "*i16", "dense": "*i1", "offsets": "*i64"}
    constants = {"HEIGHT": 128, "WIDTH": 128, "DENSE": True, "SPARSE": True, "FP32": False}
    constants |= {"ROWS": 16, "HIGH": 64, "DEPTH": 64}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names} | {
        "output": "*fp32"
    }
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in (*kinds, "output", "out", "stride")}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fused._multiply, signature=signature, constexprs=values, attrs=aligned)
    for generation in (80, 90):
        kernel = triton.compile(
            source, target=GPUTarget("cuda", generation, 32), options={"num_warps": 4, "num_stages": 3}
        )
        # Twice before the loop and once in it: the inputs and both loads of values, sixteen bytes per thread.
        print(kernel.asm["ptx"].count("cp.async.cg.shared.global"))


if __name__ == "__main__":
    {"products": check_products, "loads": count_asynchronous_loads}[sys.argv[1]]()
