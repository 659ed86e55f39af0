"""Row sharding of a layer: which process holds which rows, and a frozen weight of which it holds its rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from patch.distributed.collectives import broadcast_rows


@dataclass(frozen=True)
class RowSharding:
    """Row sharding of a layer: the rows of each process, in order; some may have none.

    Attributes:
        bounds: first rows of the processes and the end of the last, one number more than there are processes.
        rank: number of this process.
    """

    bounds: tuple[int, ...]
    rank: int

    @property
    def row_counts(self) -> list[int]:
        """Number of rows of each process."""
        return [stop - start for start, stop in pairwise(self.bounds)]

    @property
    def own(self) -> range:
        """Rows of this process."""
        return range(self.bounds[self.rank], self.bounds[self.rank + 1])


def shard_rows(rows: int, unit: int, processes: int, rank: int, turn: int = 0) -> RowSharding:
    """Shard rows as evenly as whole units allow.

    Args:
        rows: number of rows of the layer; ``unit`` divides it.
        unit: number of rows that stay together, such as those of a tile.
        processes: number of processes.
        rank: number of this process.
        turn: number of the layer; the processes that get a unit more change with it.
    """
    assert rows % unit == 0, (rows, unit)
    units, shift = rows // unit, turn % processes
    bounds = [(number * units + shift) // processes * unit for number in range(processes + 1)]
    return RowSharding(tuple(bounds), rank)


class WeightRows:
    """Frozen weight of a layer of which this process holds its own rows alone, in place of the whole matrix.

    The mask kernels use it as they use a whole weight: by its sizes, by slices of rows, or by the address of the first
    row. They read only rows that the process holds.

    Args:
        own: `[own rows, in]`, contiguous.
        sharding: row sharding of the layer.

    Attributes:
        shape: `[out, in]`, the size of the whole matrix.
    """

    def __init__(self, own: Tensor, sharding: RowSharding) -> None:
        assert len(own) == len(sharding.own) and own.is_contiguous()
        self.own, self.sharding = own, sharding
        self.shape, self.dtype, self.device = torch.Size((sharding.bounds[-1], own.shape[1])), own.dtype, own.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        start = self.sharding.own.start
        assert start <= rows.start <= rows.stop <= self.sharding.own.stop, (rows, self.sharding)
        return self.own[rows.start - start : rows.stop - start]

    def is_contiguous(self) -> bool:
        """Return True: rows follow one another in memory."""
        return True

    def data_ptr(self) -> int:
        """Return the address of the first row of the whole matrix, of which only own rows exist."""
        return self.own.data_ptr() - self.sharding.own.start * self.shape[1] * self.own.element_size()

    def gathered(self) -> Tensor:
        """Return the whole matrix, `[out, in]`; all processes must call it at the same time."""
        whole = self.own.new_empty(self.shape)
        whole[self.sharding.own.start : self.sharding.own.stop] = self.own
        broadcast_rows(whole, self.sharding.bounds)
        return whole


# Frozen weight of a layer, `[out, in]`.
Weight = Tensor | WeightRows
