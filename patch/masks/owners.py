"""Which rows of a layer each of several processes owns, where they share out the logits of its patterns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Owners:
    """The owners of a layer's rows, in order of the rows; some may own none.

    Attributes:
        bounds: where the owners' rows begin and end, one number more than there are processes.
        rank: which of them this process is.
    """

    bounds: tuple[int, ...]
    rank: int

    @property
    def heights(self) -> list[int]:
        """How many rows each owns."""
        return [stop - start for start, stop in pairwise(self.bounds)]

    @property
    def own(self) -> range:
        """The rows of this process."""
        return range(self.bounds[self.rank], self.bounds[self.rank + 1])


def share_out(rows: int, unit: int, processes: int, rank: int, turn: int = 0) -> Owners:
    """Share rows out as evenly as whole units allow.

    Args:
        rows: of the layer; ``unit`` divides them.
        unit: rows that stay together, such as those of a tile.
        processes: how many owners.
        rank: of this process.
        turn: number of the layer: who gets a unit more changes with it.
    """
    assert rows % unit == 0, (rows, unit)
    units, shift = rows // unit, turn % processes
    bounds = [(number * units + shift) // processes * unit for number in range(processes + 1)]
    return Owners(tuple(bounds), rank)
