"""Mask files of an experiment, with one file for all runs that have the same mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from patch.masks.header import read_header
from patch.pipeline.runs.layout import Layout
from patch.pipeline.runs.run import Run


class SharedMasks:
    """Mask files of an experiment, without duplicates.

    An ablation's run with the default value has the same mask as the plain run. A run of another experiment may also
    have the same mask. Such masks are made only once.

    Args:
        runs: Runs that have a mask, before quantization.
        digest: Function that returns the digest of everything that a run's mask depends on.
        layout: Path layout of the experiment.
        reuse: Names of experiments whose masks are reused; the first one that has a mask is used.
    """

    def __init__(
        self, runs: Sequence[Run], digest: Callable[[Run], str], layout: Layout, reuse: Sequence[str] = ()
    ) -> None:
        self._runs, self._digest, self._layout = runs, digest, layout
        self._others = [Layout(name) for name in reuse]

    @cached_property
    def _owners(self) -> dict[str, Run]:
        plain_first = sorted(self._runs, key=lambda run: run.variant is not None)
        owners: dict[str, Run] = {}
        for run in plain_first:
            owners.setdefault(self._digest(run), run)
        return owners

    @cached_property
    def _places(self) -> dict[str, tuple[Layout, Run]]:
        return {digest: self._place(digest, run) for digest, run in self._owners.items()}

    def _place(self, digest: str, run: Run) -> tuple[Layout, Run]:
        for other in self._others:
            for candidate in (run, run.model_copy(update={"variant": None})):
                header = read_header(other.mask(candidate)) or {}
                curve = run.definition.stage != "learn" or Path(other.curve(candidate)).is_file()
                if header.get("digest") == digest and curve:
                    return other, candidate
        return self._layout, run

    @cached_property
    def made(self) -> list[Run]:
        """Runs whose masks the experiment makes, dependencies first."""
        return [run for run in self._runs if self._places[self._digest(run)] == (self._layout, run)]

    def mask(self, run: Run) -> str:
        """Return the path of a run's mask."""
        layout, owner = self._places[self._digest(run.pruned)]
        return layout.mask(owner)

    def curve(self, run: Run) -> str:
        """Return the path of a learning run's training curve."""
        layout, owner = self._places[self._digest(run.pruned)]
        return layout.curve(owner)
