"""Noise as a function of a counter: nothing is stored, and the backward pass computes it again.

A number depends on (seed, step, micro-batch, layer), through two 32-bit keys, and on its place in the layer. It does
not depend on threads, blocks of rows or the device. The mixers are 32-bit integer hashes of the kind of MurmurHash3's
finaliser, with multipliers found by search for little bias (C. Wellons, "Prospecting for hash functions", 2018).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Uniform numbers have 23 bits, so that with a half added they are exact in fp32 and lie inside (0, 1).
_STEP = 2.0**-23
# Counter that makes the tiles' noise differ from the patterns'.
TILES = 0x7469


def noise_keys(*counters: int) -> tuple[int, int]:
    """Return two 32-bit keys that differ for every tuple of counters, such as (seed, step, micro-batch, layer)."""
    # The number of counters is included because the generator gives the same keys for (1,) and (1, 0).
    first, second = np.random.SeedSequence((len(counters), *counters)).generate_state(2, np.uint32)
    return int(first), int(second)


def signed(value: int) -> int:
    """Return a word of 32 bits as the int32 with the same bits."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Return the logical right shift of int32."""
    return (bits >> by).bitwise_and_((1 << (32 - by)) - 1)


# The keys of one layer, or int32 tensors with keys for each index.
Keys = tuple[int, int] | tuple[Tensor, Tensor]


def mixed(index: Tensor, keys: Keys) -> Tensor:
    """Return random bits for each index, as int32; the lower ones are less mixed than the upper 23, which are used."""
    first, second = (key if isinstance(key, Tensor) else signed(key) for key in keys)
    bits = index * signed(0x9E3779B9) + first
    bits ^= _shifted(bits, 16)
    bits *= signed(0x7FEB352D)
    bits ^= _shifted(bits, 15)
    bits *= signed(0x846CA68B)
    bits ^= _shifted(bits, 16)
    bits += second
    bits ^= _shifted(bits, 16)
    bits *= signed(0x21F0AAAD)
    return bits


def uniform_noise(index: Tensor, keys: Keys) -> Tensor:
    """Return uniform numbers in the open interval (0, 1), fp32.

    Args:
        index: int32, of any shape; place in the layer.
        keys: keys from `noise_keys`, or a pair for each index.
    """
    return _shifted(mixed(index, keys), 9).float().add_(0.5).mul_(_STEP)


def gumbel_noise(index: Tensor, keys: tuple[int, int]) -> Tensor:
    """Return standard Gumbel noise, fp32, of the shape of ``index``."""
    return uniform_noise(index, keys).log_().neg_().log_().neg_()


def logistic_noise(index: Tensor, keys: Keys) -> Tensor:
    """Return the difference of two standard Gumbel variables, fp32, of the shape of ``index``."""
    uniform = uniform_noise(index, keys)
    return uniform.log() - (-uniform).log1p()


def places(count: int, first: int = 0, device: torch.device | str | None = None) -> Tensor:
    """Return ``count`` indices from ``first`` on, modulo 2**32."""
    return torch.arange(first, first + count, dtype=torch.int64, device=device).to(torch.int32)
