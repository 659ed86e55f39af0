"""Self-test of the mask kernels: random layers, compared with masks in float64 that autograd differentiates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from patch.errors import InputError
from patch.masks.kernels import Layer, Sampling, kernel_for
from patch.masks.kernels.eager import PATTERNS, pack_bits
from patch.masks.noise import gumbel_noise, noise_keys, places

# Largest error that rounding explains, as a fraction of the largest value.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
NORM_GRADIENT = 0.3


class Check(NamedTuple):
    """Comparison of one output of a kernel.

    Attributes:
        kernel: Module of the kernel, and the function.
        case: Description of the inputs and the output.
        error: Largest difference as a fraction of the largest expected value.
        tolerance: Largest error that rounding explains.
    """

    kernel: str
    case: str
    error: float
    tolerance: float

    @property
    def failed(self) -> bool:
        """Return whether the output is wrong; an error that is no number is, too."""
        return not self.error <= self.tolerance


@contextmanager
def running(kernel: str, case: str) -> Iterator[None]:
    """Name the kernel and the case in the error of a kernel that fails.

    Raises:
        InputError: The block has failed.
    """
    try:
        yield
    except Exception as error:  # whatever a compiler or a driver raises
        raise InputError(f"{kernel} fails: {case}: {type(error).__name__}: {error}") from error


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a fraction of the largest expected value, which is not zero."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


def check_mask_kernels(device: torch.device, seed: int = 0) -> Iterator[Check]:
    """Compare the kernel of each dtype on a device: learned and frozen patterns, with and without tiles, soft and hard.

    Args:
        device: Device of the kernels.
        seed: Seed of shapes, weights and gradients.

    Yields:
        A comparison for each output: masked weights, their squared norm, and the gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    for dtype, (learned, tiled, hard) in product(TOLERANCES, product((True, False), (True, False), (True, False))):
        if learned or (tiled and not hard):
            layer = _random_layer(learned, tiled, hard, dtype, device, generator)
            yield from _check_layer(layer, kernel_for(device, dtype), generator)


def _random_layer(
    learned: bool, tiled: bool, hard: bool, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Layer:
    tile = 4 * int(torch.randint(2, 9, (), generator=generator))
    rows, columns = (tile * int(size) for size in torch.randint(3, 8, (2,), generator=generator))
    weight = torch.randn(rows, columns, generator=generator).to(dtype).to(device)
    logits = 0.02 * torch.randn(6, rows * columns // 4, generator=generator).to(device) if learned else None
    frozen = torch.rand(rows, columns // 4, 4, generator=generator).argsort(-1) < 2
    bits = None if learned else pack_bits(frozen.view(rows, columns)).to(device)
    density = torch.rand(rows // tile, columns // tile, generator=generator).to(device) if tiled else None
    sides, keys = (tile, tile) if tiled else (1, 4), noise_keys(rows, columns)
    return Layer(weight, logits, bits, density, sides, Sampling(scale=100.0, temperature=2.0, hard=hard), keys)


def _check_layer(layer: Layer, kernel: ModuleType, generator: torch.Generator) -> Iterator[Check]:
    rows, columns = layer.weight.shape
    dtype, device = layer.weight.dtype, layer.weight.device
    pattern = "frozen" if layer.logits is None else "hard" if layer.sampling.hard else "soft"
    tiles = f"tiles of {layer.tile[0]}" if layer.tile_density is not None else "no tiles"
    case = f"{rows}x{columns}, {str(dtype).removeprefix('torch.')}, {pattern} patterns, {tiles}"
    gradient = torch.randn(rows, columns, generator=generator).to(dtype).to(device)
    expected = _expected(layer, gradient)

    def checks(function: str, outputs: dict[str, Tensor | None]) -> Iterator[Check]:
        for output, values in outputs.items():
            if values is not None:
                error = relative_error(values, expected[output])
                yield Check(f"{kernel.__name__}.{function}", f"{case}: {output}", error, TOLERANCES[dtype])

    masked = torch.empty_like(layer.weight)
    with running(f"{kernel.__name__}.forward", case):
        norm = torch.as_tensor(kernel.forward(layer, 0, masked), device=device)
        yield from checks("forward", {"masked weights": masked, "squared norm": norm})
    grad_logits = None if layer.logits is None else torch.empty_like(layer.logits)
    grad_density = None if layer.tile_density is None else torch.zeros_like(layer.tile_density)
    with running(f"{kernel.__name__}.backward", case):
        again, norm_gradient = torch.empty_like(masked), torch.tensor(NORM_GRADIENT, device=device)
        kernel.backward(layer, 0, gradient, again, norm_gradient, grad_logits, False, grad_density)
        found = {"gradient of the logits": grad_logits, "gradient of the tiles": grad_density}
        yield from checks("backward", {"masked weights": again} | found)


def _expected(layer: Layer, gradient: Tensor) -> dict[str, Tensor]:
    """Return the outputs in float64, the gradients by autograd."""
    rows, columns = layer.weight.shape
    weight, leaves = layer.weight.double(), {}
    if layer.logits is None:
        flat = (layer.bits[:, None] >> torch.arange(8, device=weight.device)) & 1
        pattern = flat.flatten()[: rows * columns].view(rows, columns).double()
    else:
        logits = leaves["gradient of the logits"] = layer.logits.double().requires_grad_()
        noise = gumbel_noise(places(logits.numel(), device=weight.device), layer.keys).double().view_as(logits)
        chosen = ((layer.sampling.scale * logits + noise) / layer.sampling.temperature).softmax(0)
        if layer.sampling.hard:
            # The gradient is that of the soft choice.
            one_hot = torch.zeros_like(chosen).scatter_(0, chosen.argmax(0, keepdim=True), 1)
            chosen = one_hot + chosen - chosen.detach()
        patterns = torch.tensor(PATTERNS, dtype=torch.float64, device=weight.device)
        pattern = (chosen.T @ patterns).view(rows, columns)
    mask = pattern
    if layer.tile_density is not None:
        density = leaves["gradient of the tiles"] = layer.tile_density.double().requires_grad_()
        dense = torch.kron(density, torch.ones(layer.tile, dtype=torch.float64, device=weight.device))
        mask = dense + (1 - dense) * pattern
    masked = mask * weight
    norm = masked.square().sum()
    total = (masked * gradient.double()).sum() + NORM_GRADIENT * norm
    gradients = torch.autograd.grad(total, list(leaves.values()))
    outputs = {"masked weights": masked.detach(), "squared norm": norm.detach()}
    return outputs | dict(zip(leaves, gradients, strict=True))
