"""What an evaluation has measured so far, on disk: a run that is stopped goes on after its last finished part."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patch.errors import InputError
from patch.evaluation.metric import Metric
from patch.io import read_json, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One finished measurement.

    Attributes:
        metric: what was measured.
        cost: its `seconds` and `peak_memory_mb`.
    """

    metric: Metric
    cost: dict[str, float]


def _part(metric: dict[str, Any], cost: dict[str, float]) -> Part:
    """A part as JSON has it; one without its samples is broken, as they cannot be measured on their own."""
    return Part(Metric(**metric | {"values": tuple(metric["values"])}), dict(cost))


class PartialRecord:
    """The finished parts of one evaluation, by name.

    Args:
        path: of the file; None keeps them in memory alone. A file that is broken or of others is passed over.
        digest: of the settings and of all that the inputs are made from.
    """

    def __init__(self, path: Path | None, digest: str) -> None:
        self.path, self.digest = path, digest
        self.parts: dict[str, Part] = self._read() if path and path.exists() else {}

    def _read(self) -> dict[str, Part]:
        try:
            content = read_json(self.path)
            parts = {name: _part(**part) for name, part in content["parts"].items()}
            if content["digest"] == self.digest:
                return parts
            log.warning("%s is of an evaluation with other settings and is passed over", self.path)
        except (InputError, AttributeError, KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be read and is passed over: %s", self.path, error)
        return {}

    def add(self, name: str, metric: Metric, cost: dict[str, float]) -> None:
        """Note a finished part, on disk too."""
        self.parts[name] = Part(metric, cost)
        if self.path:
            write_json(
                self.path, {"digest": self.digest, "parts": {key: asdict(part) for key, part in self.parts.items()}}
            )

    def cost(self) -> dict[str, float]:
        """What all parts took together: the sum of `seconds`, the largest `peak_memory_mb`."""
        costs = [part.cost for part in self.parts.values()]
        return {
            "seconds": round(sum(cost["seconds"] for cost in costs), 3),
            "peak_memory_mb": max(cost["peak_memory_mb"] for cost in costs),
        }

    def remove(self) -> None:
        """Remove the file: the record has it all."""
        if self.path:
            self.path.unlink(missing_ok=True)
