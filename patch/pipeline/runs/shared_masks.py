"""Which file holds the mask of a cell: one for all cells that are made in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from patch.masks.header import read_header
from patch.pipeline.runs.cell import Cell
from patch.pipeline.runs.layout import Layout


class SharedMasks:
    """The masks of an experiment.

    An ablation's cell whose value is the default one is the plain run under another name, and a run of another
    experiment may be the same: such masks are not made twice.

    Args:
        cells: all that have a mask, before quantisation.
        digest: of all that a cell's mask depends on.
        layout: of the experiment.
        reuse: experiments whose masks may be taken, the first that has one.
    """

    def __init__(
        self, cells: Sequence[Cell], digest: Callable[[Cell], str], layout: Layout, reuse: Sequence[str] = ()
    ) -> None:
        self._cells, self._digest, self._layout = cells, digest, layout
        self._others = [Layout(name) for name in reuse]

    @cached_property
    def _owners(self) -> dict[str, Cell]:
        plain_first = sorted(self._cells, key=lambda cell: cell.variant is not None)
        owners: dict[str, Cell] = {}
        for cell in plain_first:
            owners.setdefault(self._digest(cell), cell)
        return owners

    @cached_property
    def _places(self) -> dict[str, tuple[Layout, Cell]]:
        return {digest: self._place(digest, cell) for digest, cell in self._owners.items()}

    def _place(self, digest: str, cell: Cell) -> tuple[Layout, Cell]:
        for other in self._others:
            for candidate in (cell, replace(cell, variant=None)):
                header = read_header(other.mask(candidate)) or {}
                curve = cell.spec.stage != "learn" or Path(other.curve(candidate)).is_file()
                if header.get("digest") == digest and curve:
                    return other, candidate
        return self._layout, cell

    @cached_property
    def made(self) -> list[Cell]:
        """The cells whose masks the experiment makes, dependencies first."""
        return [cell for cell in self._cells if self._places[self._digest(cell)] == (self._layout, cell)]

    def mask(self, cell: Cell) -> str:
        """File of a cell's mask."""
        layout, owner = self._places[self._digest(cell.pruned)]
        return layout.mask(owner)

    def curve(self, cell: Cell) -> str:
        """File of a learned cell's training curve."""
        layout, owner = self._places[self._digest(cell.pruned)]
        return layout.curve(owner)
