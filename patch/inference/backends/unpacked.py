"""Backend in plain PyTorch for any device and dtype: unpacks rows of tiles and multiplies by them."""

from __future__ import annotations

import torch
from torch import Tensor

from patch.inference.packed import PackedWeight, unpack_rows

# Number of weights unpacked at a time.
BLOCK = 1 << 22


def supports(packed: PackedWeight, inputs: Tensor) -> str | None:
    """Return None if these can be multiplied, else the reason; see `patch.inference.backends`."""
    if inputs.device != packed.values.device:
        return f"inputs on {inputs.device}, the weight on {packed.values.device}"
    return None


def multiply(packed: PackedWeight, inputs: Tensor) -> Tensor:
    """Return the product; see `patch.inference.backends`."""
    parts = packed.checked
    rows = parts.dense.shape[0]
    step = max(1, BLOCK // (parts.height * parts.shape[1]))
    blocks = (unpack_rows(packed, i, min(i + step, rows)) for i in range(0, rows, step))
    if parts.scales is not None:
        blocks = (block.to(inputs.dtype) for block in blocks)
    return torch.cat([inputs @ block.T for block in blocks], 1)
