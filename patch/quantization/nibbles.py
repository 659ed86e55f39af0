"""Codes of four bits, two in a byte: the first in the lower half, both shifted by eight so that they are positive."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_nibbles(codes: Tensor) -> Tensor:
    """Pack codes from -8 to 7, `[..., 2 n]` int8, into `[..., n]` uint8."""
    shifted = (codes + 8).to(torch.uint8)
    return shifted[..., ::2] | (shifted[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Unpack `[..., n]` uint8 into codes, `[..., 2 n]` int8."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).to(torch.int8) - 8
