"""Mask files of an experiment, with one file for all runs that have the same mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from patch.masks.header import read_header
from patch.pipeline.runs.cell import Cell
from patch.pipeline.runs.layout import Layout


class SharedMasks:
    """Mask files of an experiment, without duplicates.

    An ablation's run with the default value has the same mask as the plain run. A run of another experiment may also
    have the same mask. Such masks are made only once.

    Args:
        cells: Runs that have a mask, before quantization.
        digest: Function that returns the digest of everything that a run's mask depends on.
        layout: Path layout of the experiment.
        reuse: Names of experiments whose masks are reused; the first one that has a mask is used.
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
        """Runs whose masks the experiment makes, dependencies first."""
        return [cell for cell in self._cells if self._places[self._digest(cell)] == (self._layout, cell)]

    def mask(self, cell: Cell) -> str:
        """Return the path of a run's mask."""
        layout, owner = self._places[self._digest(cell.pruned)]
        return layout.mask(owner)

    def curve(self, cell: Cell) -> str:
        """Return the path of a learning run's training curve."""
        layout, owner = self._places[self._digest(cell.pruned)]
        return layout.curve(owner)
