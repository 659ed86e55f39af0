"""Comparison of the Triton kernels of masks with plain PyTorch: a program for Triton's interpreter."""

import itertools
from dataclasses import replace

import torch

from patch.masks import proximal
from patch.masks.kernels import eager, fused, proximal_triton
from patch.masks.kernels.eager import pack_bits
from patch.masks.kernels.layer import Layer, Sampling
from patch.masks.nm import NM, obeys
from patch.masks.noise import noise_keys


def layer(joint, tile, hard, dtype, rows, columns, temperature):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    logits = torch.randn(6, rows * columns // 4, generator=generator) * 0.02 if joint else None
    bits = None if joint else pack_bits(torch.rand(rows, columns, generator=generator) > 0.5)
    tile_density = torch.rand(rows // tile, columns // tile, generator=generator) if tile else None
    sampling = Sampling(100.0, temperature, hard)
    return Layer(weight, logits, bits, tile_density, (tile, tile) if tile else (1, 4), sampling, noise_keys(1, 2))


def own(one, first, last):
    groups = one.weight.shape[1] // 4
    return replace(one, logits=one.logits[:, first * groups : last * groups].clone(), first_row=first)


def results(kernel, one, add, start, stop):
    rows, columns = one.weight.shape
    gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(one.weight.dtype)
    grad_logits = torch.ones_like(one.logits) if one.logits is not None else None
    grad_density = torch.zeros_like(one.tile_density) if one.tile_density is not None else None
    found, norm = [], 0.0
    middle = (start + stop) // 2 - 1
    for first, last in ((start, middle), (middle, stop)):
        masked = torch.empty(last - first, columns, dtype=one.weight.dtype)
        norm = norm + kernel.forward(one, first, masked)
        again, mine = torch.empty_like(masked), gradient[first:last].contiguous()
        kernel.backward(one, first, mine, again, torch.tensor(0.3), grad_logits, add, grad_density)
        assert torch.equal(again, masked)
        found.append(masked.float())
    return [*found, torch.as_tensor(norm), *(t for t in (grad_logits, grad_density) if t is not None)]


def compare_proximal() -> int:
    """Compare the proximal operator on groups of every size and on special ones; return the number of cases."""
    proximal_triton.GROUPS, count = 64, 0
    special = torch.tensor([[0.9, 0.9, 0.9, 0.9], [1, 1, 1, 0.3], [0.5, -0.5, 0, 0], [1.1, 0.2, -0.2, 0.1], [0] * 4])
    special = torch.cat([special, torch.tensor([[1, float("nan"), 0.1, 0.2], [float("inf"), 1, 0.5, 0.1]])])
    for dtype, scale, strength in itertools.product(
        (torch.float32, torch.bfloat16), (0.01, 0.1, 0.3, 1.0), (0.0, 0.25, 1.0)
    ):
        drawn = scale * torch.randn(93, 4, generator=torch.Generator().manual_seed(0))
        weight = torch.cat([drawn, special]).to(dtype).reshape(25, 16)
        expected, found = torch.empty_like(weight), weight.clone()
        proximal._shrink_eager(weight, strength, expected)
        penalty, sparse = proximal_triton.shrink(found, strength, found, proximal._CONSTANTS)
        tolerance = 1e-2 if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=0, equal_nan=True)
        torch.testing.assert_close(penalty, proximal.triple_products(found).sum(dtype=torch.float64), equal_nan=True)
        assert sparse == obeys(found != 0, NM(2, 4)).sum()
        count += 1
    return count


def main() -> None:
    """Compare both implementations on layers of every kind, and print the number of cases."""
    count = 0
    for joint, tile, hard, dtype, temperature in itertools.product(
        (True, False), (None, 4, 8), (True, False), (torch.float32, torch.bfloat16), (4.0, 0.05)
    ):
        if not joint and (tile is None or hard):
            continue
        # More groups than one program has.
        one = layer(joint, tile, hard, dtype, 48, 40, temperature)
        cases = [(one, 0, 48)] + ([(own(one, 8, 48), 8, 48)] if joint else [])
        for case in cases:
            found = [results(kernel, case[0], count % 2 == 0, *case[1:]) for kernel in (fused, eager)]
            for actual, expected in zip(*found, strict=True):
                scale = float(expected.abs().max())
                # The interpreter cuts a number off where a GPU rounds it to bf16.
                tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
                torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)
            count += 1
    print(count + compare_proximal(), "cases")


if __name__ == "__main__":
    main()
