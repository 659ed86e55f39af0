"""Row sharding of a layer's pattern logits over several processes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Owners:
    """Row sharding of a layer: the rows of each process, in order; some may own none.

    Attributes:
        bounds: first rows of the processes and the end of the last, one number more than there are processes.
        rank: number of this process.
    """

    bounds: tuple[int, ...]
    rank: int

    @property
    def heights(self) -> list[int]:
        """Number of rows of each process."""
        return [stop - start for start, stop in pairwise(self.bounds)]

    @property
    def own(self) -> range:
        """Rows of this process."""
        return range(self.bounds[self.rank], self.bounds[self.rank + 1])


def share_out(rows: int, unit: int, processes: int, rank: int, turn: int = 0) -> Owners:
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
    return Owners(tuple(bounds), rank)
