"""N:M patterns as text, without PyTorch."""

from __future__ import annotations

import re

from patch.errors import InputError

NM_TEXT = re.compile(r"([0-9]{1,4}):([0-9]{1,4})\Z")


def parse_nm(pattern: str) -> tuple[int, int]:
    """Parse `N:M`, where N of every M weights are kept.

    Raises:
        InputError: it is not N:M with 0 < N <= M.
    """
    match = NM_TEXT.match(pattern)
    if not match or not 0 < int(match[1]) <= int(match[2]):
        raise InputError(f"pattern {pattern!r:.80} is not N:M with 0 < N <= M, such as 2:4")
    return int(match[1]), int(match[2])
