"""Checkpoints of a run: the newest good one is found on disk, a broken one is passed over."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from patch.errors import InputError
from patch.io import atomic_file

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run in a folder of their own.

    Args:
        folder: made when the first checkpoint is written.
        identity: what the run is (its settings); a checkpoint of another run is not resumed.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, identity: str, keep: int = 2) -> None:
        self.folder, self.identity, self.keep = folder, identity, keep

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), reverse=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state before ``step``, then drop the oldest checkpoints, and those of later steps.

        The later ones were passed over when the run began: they are broken, or of other settings.

        Raises:
            InputError: the disk is full; the last good checkpoint stays.
        """
        try:
            with atomic_file(self._path(step)) as temporary:
                torch.save({"identity": self.identity, "step": step, "state": state}, temporary)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"checkpoint of step {step} could not be written to {self.folder}: {error}; "
                "free some space and run again, the last checkpoint is kept"
            ) from error
        files = self._files()
        kept = [path for path in files if path <= self._path(step)][: self.keep]
        for path in files:
            if path not in kept:
                path.unlink()

    def remove_halves(self) -> None:
        """Remove what a process has begun to write that was killed."""
        for path in [*self.folder.glob(".step-*"), *self.folder.glob(".log.*")]:
            path.unlink(missing_ok=True)

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The step to go on with and the state before it, or None to begin."""
        for path in self._files():
            try:
                identity, step, state = _load(path)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the file, an older one may be good
                log.warning("checkpoint %s cannot be read and is passed over: %s", path, error)
                continue
            if identity == self.identity:
                return step, state
            log.warning("checkpoint %s is of a run with other settings and is passed over", path)
        return None

    def read(self, step: int) -> dict[str, Any]:
        """The state before ``step``, which another process has found good.

        Raises:
            InputError: it is not here.
        """
        try:
            return _load(self._path(step))[2]
        except OSError as error:
            raise InputError(
                f"checkpoint {self._path(step)} cannot be read on {socket.gethostname()} ({error.strerror}); "
                "the nodes of a job must share the folder"
            ) from error


def _load(path: Path) -> tuple[str, int, dict[str, Any]]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content["identity"], content["step"], content["state"]


class StepLog:
    """One JSON line a step; after a resume, the lines from the resumed step on are dropped."""

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        kept = []
        if first_step and path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < first_step]
        with self._disk():
            # Not in place: a process that is killed here would take the lines with it.
            with atomic_file(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept))
            self._file = path.open("ab", buffering=0)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"the log {self.path} could not be written: {error.strerror}; free some space and run again, the last "
                "checkpoint is kept"
            ) from error

    def write(self, line: dict[str, Any]) -> None:
        """Append a line.

        Raises:
            InputError: the disk is full.
        """
        rest = (json.dumps(line) + "\n").encode()
        with self._disk():
            while rest:
                rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        """Wait until the lines are on the disk.

        Raises:
            InputError: it is full.
        """
        with self._disk():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
