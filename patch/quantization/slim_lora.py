"""SLiM-LoRA (Mozaffari et al., 2024, arXiv 2410.09615): low-rank adapters for compression errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.quantization.absmax import quantize


@dataclass(frozen=True)
class Adapter:
    """Low-rank matrix `left @ right` that is added to a weight.

    Attributes:
        left: `[out, rank]`.
        right: `[rank, in]`, of the same dtype.
    """

    left: Tensor
    right: Tensor

    def to(self, target: torch.dtype | str) -> Adapter:
        """Return the adapter in another dtype or on another device."""
        return Adapter(self.left.to(target), self.right.to(target))

    def quantized(self, bits: int, group_size: int) -> Adapter:
        """Return both factors rounded to the group AbsMax grid, in fp32; the groups run along `out` and along `in`.

        A group thus lies within one component of the low-rank matrix, independent of the sizes of the others.

        Raises:
            InputError: as `quantize`.
        """
        left = quantize(self.left.T, bits, group_size).dequantize().T.contiguous()
        return Adapter(left, quantize(self.right, bits, group_size).dequantize())


def adapter_rank(rows: int, columns: int, rank_ratio: float) -> int:
    """Return the rank: `rank_ratio` times the smaller side of a layer, rounded down.

    Raises:
        InputError: the ratio is not within 0 to 1.
    """
    if not 0 <= rank_ratio <= 1:
        raise InputError(f"low-rank adapters: rank_ratio is {rank_ratio}; use 0 to 1, such as 0.1")
    return int(rank_ratio * min(rows, columns))


def saliency(statistics: InputStatistics) -> Tensor:
    """Return the saliency of each input channel: Wanda's norm plus its smallest positive value, so that none is zero.

    Returns:
        `[in]` fp64, positive; ones if the layer's input was always zero.

    Raises:
        InputError: the statistics are not finite.
    """
    norms = (statistics.squares.double() / statistics.sequences).sqrt()
    if not norms.isfinite().all():
        channel = int((~norms.isfinite()).nonzero()[0])
        raise InputError(
            f"low-rank adapters: the norm of input channel {channel} is {norms[channel].item()}; "
            "the calibration data must give finite activations"
        )
    positive = norms[norms > 0]
    return norms + positive.min() if positive.numel() else torch.ones_like(norms)


def slim_lora(original: Tensor, compressed: Tensor, channels: Tensor, rank_ratio: float = 0.1) -> Adapter:
    """Return the adapter of its rank that brings ``compressed`` closest to ``original``.

    It minimises `||(original - compressed - left @ right) @ diag(channels)||_F`, by the leading singular vectors of the
    error with columns scaled by ``channels``.

    Args:
        original: `[out, in]`, the weight before pruning, any float type.
        compressed: `[out, in]`, the pruned and quantised weight.
        channels: `[in]`, positive, from `saliency`.
        rank_ratio: rank over the smaller side; see `adapter_rank`.

    Returns:
        fp32 adapter; in each component the column of ``left`` and the row of ``right`` have equal norms.

    Raises:
        InputError: ``rank_ratio`` is out of range.
    """
    rank = adapter_rank(*original.shape, rank_ratio)
    channels = channels.double()
    error = (original.double() - compressed.double()) * channels
    left, right = _best_factors(error, rank)
    right = right / channels
    # Saliencies span orders of magnitude; an even split keeps both factors within the range of fp16.
    split = (right.norm(dim=1) / left.norm(dim=0)).sqrt()
    split = torch.where((split > 0) & split.isfinite(), split, 1.0)
    return Adapter((left * split).float(), (right / split.unsqueeze(1)).float())


def _best_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors `[out, rank]` and `[rank, in]` whose product is the truncated SVD of an fp64 ``matrix``.

    The eigenvectors of the smaller Gram matrix cost a fraction of an SVD. The Gram matrix squares the condition number,
    but ``matrix`` is projected on the eigenvectors, so that a subspace error enters the distance only in second order.
    """
    rows, columns = matrix.shape
    if rows <= columns:
        basis = _leading_eigenvectors(matrix @ matrix.T, rank)
        return basis, basis.T @ matrix
    basis = _leading_eigenvectors(matrix.T @ matrix, rank)
    return matrix @ basis, basis.T


def _leading_eigenvectors(gram: Tensor, rank: int) -> Tensor:
    # Eigenvalues come in ascending order.
    return torch.linalg.eigh(gram).eigenvectors[:, gram.shape[0] - rank :]
