"""Group AbsMax quantisation: the largest absolute weight of every group sets its step size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from patch.errors import InputError


@dataclass(frozen=True)
class Quantized:
    """Quantised weight matrix.

    Attributes:
        codes: `[out, in]` int8, within `-2^(bits-1) .. 2^(bits-1) - 1`.
        scales: `[out, ceil(in / group_size)]` fp32, the steps; positive.
        bits: width of a code.
        group_size: weights along `in` that share a step; the last group of a row may be shorter.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    group_size: int

    def dequantize(self) -> Tensor:
        """Return `codes * scales`, `[out, in]` fp32; a code of 0 gives exactly 0."""
        columns = self.codes.shape[1]
        steps = self.scales.repeat_interleave(min(self.group_size, columns), dim=1)[:, :columns]
        return self.codes * steps


def group_count(columns: int, group_size: int) -> int:
    """Return the number of groups in a row of ``columns`` weights."""
    return -(-columns // group_size)


def check_grid(bits: int, group_size: int) -> None:
    """Check the parameters of a quantisation grid.

    Raises:
        InputError: ``bits`` is not within 2 to 8, or ``group_size`` is below 1.
    """
    if not 2 <= bits <= 8:
        raise InputError(f"quantisation: bits is {bits}; use 2 to 8")
    if group_size < 1:
        raise InputError(f"quantisation: group_size is {group_size}; use 1 or more, such as 128")


def quantize(weight: Tensor, bits: int = 4, group_size: int = 128) -> Quantized:
    """Quantise symmetrically: `round(w / scale)` with `scale = max |w| / (2^(bits-1) - 1)` of the group.

    Half a step rounds to the even code. A group whose scale is below the normal range of fp32 becomes zeros.

    Args:
        weight: `[out, in]`, any float type.
        bits: 2 to 8.
        group_size: consecutive weights of a row that share a scale.

    Returns:
        Codes and scales on the weight's device. The absolute error of a weight is at most half a step.

    Raises:
        InputError: ``bits`` or ``group_size`` is out of range, or a weight is not finite.
    """
    check_grid(bits, group_size)
    rows, columns = weight.shape
    weight = weight.float()
    if not weight.isfinite().all():
        row, column = (~weight.isfinite()).nonzero()[0].tolist()
        raise InputError(
            f"quantisation: the weight at row {row}, column {column} is {weight[row, column].item()}; "
            "all must be finite"
        )
    size = min(group_size, columns)
    # The zero padding of the last group does not change its maximum and is cut off below.
    padded = F.pad(weight, (0, group_count(columns, size) * size - columns)).reshape(rows, -1, size)
    largest = 2 ** (bits - 1) - 1
    scales = padded.abs().amax(dim=-1) / largest
    # Subnormal steps are too coarse for the error bound, and may be flushed to zero.
    scales = torch.where(scales >= torch.finfo(torch.float32).tiny, scales, 1.0)
    codes = (padded / scales.unsqueeze(-1)).round().clamp(-largest - 1, largest)
    return Quantized(codes.to(torch.int8).reshape(rows, -1)[:, :columns].contiguous(), scales, bits, group_size)
