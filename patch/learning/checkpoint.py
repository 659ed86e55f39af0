"""Checkpoints of a run: the newest valid one on disk is found, and broken ones are skipped.

One process writes one file. With a sharded state, each process writes its shard at the same time, and the checkpoint
is valid once all shards are there; any number of processes can resume from them.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from patch.distributed.collectives import from_first, on_all, on_first, rank, world_size
from patch.errors import InputError
from patch.files.io import atomic_file
from patch.learning.curve import read_lines

log = logging.getLogger(__name__)

# Number of the newest checkpoints to keep.
KEEP = 2
# Seconds to wait until a file that one node has written is visible on another.
VISIBLE_TIMEOUT = 90.0


class Checkpoints:
    """Checkpoints of one run, in a separate folder.

    Args:
        folder: folder of the checkpoints, made when the first one is written.
        identity: description of the run (its settings); a checkpoint of another run is not resumed.
        sharded: whether each process holds, and saves, a shard of the state; else all hold the same.
    """

    def __init__(self, folder: Path, identity: str, sharded: bool = False) -> None:
        self.folder, self.identity = folder, identity
        self._shards = world_size() if sharded else 1

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state before ``step``, then remove the oldest checkpoints and those of later steps.

        The later ones were skipped when the run began: they are broken, or of other settings. All processes call this;
        if they hold the same state, the first writes.

        Raises:
            InputError: in all processes, if the disk is full for one; the last valid checkpoint stays.
        """
        files = self._names(step, self._shards)
        mine = files[rank()] if rank() < self._shards else None
        # Shards that a killed process has left are not part of this state.
        content = {"identity": self.identity, "step": step, "moment": from_first(uuid.uuid4().hex), "state": state}
        try:
            on_all(lambda: self._write(mine, step, content) if mine else None)
        except InputError:
            if mine and self._shards > 1:
                mine.unlink(missing_ok=True)
            raise
        on_first(lambda: self._drop_all_but(step, files))

    def _write(self, path: Path, step: int, content: dict[str, Any]) -> None:
        try:
            with atomic_file(path) as temporary:
                torch.save(content, temporary)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"checkpoint of step {step} could not be written to {self.folder}: {error}; "
                "free some space and run again, the last checkpoint is kept"
            ) from error

    def _drop_all_but(self, step: int, files: Sequence[Path]) -> None:
        deadline = time.monotonic() + VISIBLE_TIMEOUT
        while missing := [file.name for file in files if not file.exists()]:
            if time.monotonic() > deadline:
                raise InputError(
                    f"checkpoint {self.folder / missing[0]} is not seen on {socket.gethostname()}; the nodes of a job "
                    "must share the folder"
                )
            time.sleep(0.1)
        older = [found for number, found in self._complete() if number < step]
        kept = {*files, *(file for found in older[: KEEP - 1] for file in found)}
        for file in self.folder.glob("step-*.pt"):
            if file not in kept:
                file.unlink()

    def _names(self, step: int, parts: int) -> list[Path]:
        names = [f"-part-{part}-of-{parts}" for part in range(parts)] if parts > 1 else [""]
        return [self.folder / f"step-{step:08d}{name}.pt" for name in names]

    def _complete(self) -> list[tuple[int, list[Path]]]:
        """Return the steps whose files are all there, with these files, the newest first."""
        there = {path.name for path in self.folder.glob("step-*.pt")}
        found = set()
        for name in there:
            _, step, *part = name.removesuffix(".pt").split("-")
            if step.isdecimal() and (not part or part[-1].isdecimal()):
                found.add((int(step), int(part[-1]) if part else 1))
        sets = [(step, self._names(step, parts)) for step, parts in sorted(found, reverse=True)]
        return [(step, files) for step, files in sets if all(file.name in there for file in files)]

    def _remove_partial(self) -> None:
        """Remove the partial files that killed processes have left."""
        for path in [*self.folder.glob(".step-*"), *self.folder.glob(".log.*")]:
            path.unlink(missing_ok=True)
        whole = {file for _, files in self._complete() for file in files}
        for path in self.folder.glob("step-*-part-*.pt"):
            if path not in whole:
                path.unlink(missing_ok=True)

    def latest(self, gap: Callable[[int], str] = lambda step: "") -> tuple[int, list[Path]] | None:
        """Find the newest valid checkpoint, and remove partial files.

        Args:
            gap: returns the fault of the log of the steps before one; empty if there is none.

        Returns:
            The step to resume at and the files of the state before it, or None to begin.

        Raises:
            InputError: the log lacks lines before every checkpoint of the run.
        """
        self._remove_partial()
        reason = ""
        for step, files in self._complete():
            try:
                contents = [_load(file) for file in files]
                if len({content["moment"] for content in contents}) > 1:
                    raise ValueError("its shards were not saved together")
                if any(content["step"] != step for content in contents):
                    raise ValueError("it holds another step")
                same = all(content["identity"] == self.identity for content in contents)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, an older one may be valid
                log.warning("checkpoint %s cannot be read and is skipped: %s", files[0], error)
                continue
            if not same:
                log.warning("checkpoint %s is of a run with other settings and is skipped", files[0])
            elif found := gap(step):
                reason = found
                log.warning("checkpoint %s is skipped: %s", files[0], reason)
            else:
                return step, files
        if reason:
            raise InputError(f"{reason}; put the file back as it was, or remove {self.folder} to begin anew")
        return None


def read_states(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the states in files that another process has found valid; only the tensor parts in use are read.

    Raises:
        InputError: a file is not visible on this node.
    """
    try:
        return [_load(file)["state"] for file in files]
    except OSError as error:
        raise InputError(
            f"checkpoint {error.filename} cannot be read on {socket.gethostname()} ({error.strerror}); "
            "the nodes of a job must share the folder"
        ) from error


def _load(path: Path) -> dict[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # Checkpoints of earlier versions are single files.
    return {"moment": None, **content}


class StepLog:
    """Log with one JSON line a step; after a resume, the lines from the resumed step on are removed.

    Each method raises `InputError` if the disk is full.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        kept = [line.text for line in read_lines(path)[0] if line.step < first_step]
        with self._disk():
            # Not in place: a process that is killed during the write would destroy the lines.
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
        """Append a line."""
        rest = (json.dumps(line) + "\n").encode()
        with self._disk():
            while rest:
                rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        """Wait until the lines are on disk."""
        with self._disk():
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
