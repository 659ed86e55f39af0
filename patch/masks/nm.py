"""N:M patterns: in each group of M consecutive weights of a row, N stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patch.errors import InputError


@dataclass(frozen=True)
class NM:
    """N of every M consecutive weights along `in` stay."""

    n: int
    m: int

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Unstructured:
    """A share ``sparsity`` of the weights goes, wherever it is."""

    sparsity: float

    def __str__(self) -> str:
        return "unstructured"


Pattern = NM | Unstructured


def parse_pattern(pattern: str, sparsity: float) -> Pattern:
    """`"2:4"` or `"unstructured"` -> a pattern."""
    if pattern == "unstructured":
        return Unstructured(sparsity)
    n, m = pattern.split(":")
    return NM(int(n), int(m))


def groups(weight: Tensor, m: int) -> Tensor:
    """View `[out, in]` as `[out, in / m, m]`.

    Raises:
        InputError: ``m`` does not divide `in`.
    """
    rows, columns = weight.shape
    if columns % m:
        raise InputError(f"a layer with {columns} input features cannot be N:{m} sparse; {m} must divide them")
    return weight.reshape(rows, columns // m, m)


def nm_mask(score: Tensor, pattern: NM) -> Tensor:
    """Keep the ``n`` largest scores of each group; among equals the later stays.

    Args:
        score: `[out, in]`, any float type.

    Returns:
        `[out, in]` bool, True = keep.
    """
    return drop_smallest(groups(score, pattern.m), pattern.m - pattern.n).reshape(score.shape)


def drop_smallest(score: Tensor, count: int) -> Tensor:
    """Mask along the last dimension that drops the ``count`` smallest scores; among equals the earlier goes."""
    dropped = score.argsort(dim=-1, stable=True)[..., :count]
    return torch.ones_like(score, dtype=torch.bool).scatter_(-1, dropped, False)


def obeys(mask: Tensor, pattern: NM) -> Tensor:
    """`[out, in / m]` bool: groups that keep at most ``n`` weights."""
    return groups(mask, pattern.m).sum(dim=-1) <= pattern.n
