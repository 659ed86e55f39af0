"""Rows are shared out in order, evenly, in whole units, and none is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from patch.masks.owners import share_out


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 20))
def test_every_row_has_one_owner(units: int, unit: int, processes: int, turn: int) -> None:
    owners = [share_out(units * unit, unit, processes, rank, turn) for rank in range(processes)]
    assert [row for one in owners for row in one.own] == list(range(units * unit))
    assert len({one.bounds for one in owners}) == 1, "all know the same"
    assert all(one.heights == [len(other.own) for other in owners] for one in owners)
    counts = [len(one.own) / unit for one in owners]
    assert all(count in (units // processes, -(-units // processes)) for count in counts)


def test_layers_of_few_tiles_take_turns() -> None:
    found = [[len(share_out(8, 8, 4, rank, turn).own) for rank in range(4)] for turn in range(4)]
    assert sorted(found) == [[0, 0, 0, 8], [0, 0, 8, 0], [0, 8, 0, 0], [8, 0, 0, 0]]
