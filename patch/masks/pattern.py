"""Patterns, tiles and block sizes of masks, without PyTorch, since the workflow imports this module to parse rules."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from patch.errors import InputError

NM_TEXT = re.compile(r"([0-9]{1,4}):([0-9]{1,4})\Z")
# A tile that is larger than a layer ends with it, so a tile of this side covers any layer.
WHOLE_MATRIX = 2**20
_Side = Annotated[int, Field(ge=4, le=WHOLE_MATRIX)]
# Side of a tile.
Tile = Annotated[
    _Side,
    BeforeValidator(
        lambda value: WHOLE_MATRIX if value == "matrix" else value, json_schema_input_type=_Side | Literal["matrix"]
    ),
]


def group_of(pattern: str) -> tuple[int, int]:
    """Return N and M of the groups of a pattern: 2:4 for `hybrid`, 1:1 for `unstructured`.

    Raises:
        InputError: it is none of these, and not N:M with 0 < N <= M.
    """
    return parse_nm({"hybrid": "2:4", "unstructured": "1:1"}.get(pattern, pattern))


def parse_nm(pattern: str) -> tuple[int, int]:
    """Parse `N:M`, where N of every M weights are kept.

    Raises:
        InputError: it is not N:M with 0 < N <= M.
    """
    match = NM_TEXT.match(pattern)
    if not match or not 0 < int(match[1]) <= int(match[2]):
        raise InputError(f"pattern {pattern!r:.80} is not N:M with 0 < N <= M, such as 2:4")
    return int(match[1]), int(match[2])


def block_size(device: str, learned: bool) -> int:
    """Return the number of weights of a layer that are masked, multiplied and differentiated at a time.

    On a CPU a block, with its gradient, fits a core's caches. It is smaller if no patterns are
    ``learned``, only tiles, so that it is small beside the model. On a GPU a block is large enough to keep it busy.
    """
    if device == "cuda":
        return 1 << 24
    return 1 << 20 if learned else 1 << 18
