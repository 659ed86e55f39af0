"""Header of a file of updated or fine-tuned weights, read without PyTorch while the workflow is parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from patch.errors import InputError
from patch.files.schema import Schema, check
from patch.files.tensors import load_header

FORMAT = "patch-weights-1"


class WeightsHeader(Schema):
    """Header of a file of weights: the digest of their settings, and the cost of fine-tuning."""

    digest: str
    cost: dict[str, Annotated[float, Field(ge=0)]] = {}


def read_weights_header(path: Path | str) -> WeightsHeader:
    """Read and verify only the header.

    Raises:
        InputError: the file is missing or damaged.
    """
    header = load_header(path, FORMAT, "weights")
    return check(WeightsHeader, header, f"weights {path}: not the header of a file of weights")


def weights_digest(path: Path | str) -> str | None:
    """Return the digest in a file of weights; None if the file is missing or damaged."""
    try:
        return read_weights_header(path).digest
    except InputError:
        return None
