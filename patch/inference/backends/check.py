"""Self-test of the products with packed weights: random layers, compared with products in float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from patch.inference.backends import backend_for, untuned
from patch.inference.packed import pack
from patch.masks.kernels.check import Check, relative_error, running
from patch.quantization.absmax import quantize

# Largest error that rounding explains, as a fraction of the largest value.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# Fraction of dense tiles, and whether the weight is quantized to four bits.
FORMS = {"hybrid": (0.5, False), "2:4": (0.0, False), "hybrid, 4 bits": (0.5, True)}
# Few rows and many have kernels of their own.
ROWS = (1, 5, 200)
TILE, GROUP_SIZE = 64, 32


def check_packed_products(device: torch.device, seed: int = 0) -> Iterator[Check]:
    """Compare the product that is chosen for each dtype, form of the weight and number of rows, without tuning.

    Args:
        device: Device of the weights.
        seed: Seed of shapes, weights and inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    for (form, (fraction, quantized)), dtype, rows in product(FORMS.items(), TOLERANCES, ROWS):
        out, columns = (TILE * int(size) for size in torch.randint(2, 9, (2,), generator=generator))
        weight = torch.randn(out, columns, generator=generator).to(dtype)
        dense = torch.rand(out // TILE, columns // TILE, generator=generator) < fraction
        # Both kinds of tiles, whatever the numbers are.
        dense[0, 0], dense[-1, -1] = fraction > 0, False
        mask = (torch.rand(out, columns // 4, 4, generator=generator).argsort(-1) < 2).view(out, columns)
        mask |= torch.kron(dense.float(), torch.ones(TILE, TILE)).bool()
        inputs = torch.randn(rows, columns, generator=generator).to(dtype)
        codes = quantize(weight, 4, GROUP_SIZE) if quantized else None
        packed = pack(codes or weight, mask, dense, TILE).to(device)
        values = codes.codes.double() * codes.scales.double().repeat_interleave(GROUP_SIZE, 1) if codes else weight
        expected = inputs.double() @ (mask * values.double()).T
        case = f"{out}x{columns}, {form}, {str(dtype).removeprefix('torch.')}, {rows} rows"
        multiply = backend_for(packed, inputs.to(device))
        kernel = f"{multiply.__module__}.{multiply.__name__}"
        with running(kernel, case), torch.inference_mode(), untuned():
            found = multiply(packed, inputs.to(device)).cpu()
        yield Check(kernel, case, relative_error(found, expected), TOLERANCES[dtype])
