"""What a mask file says of itself, without its masks: light, for the workflow while it is parsed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# The length of a safetensors header stands in its first bytes; one of a thousand layers has 200 kB.
LENGTH_BYTES = 8
LONGEST = 100_000_000


def read_header(path: Path | str) -> dict[str, Any] | None:
    """The description in a file of `patch.masks.packed.save_masks`; None where there is none, or it is damaged."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            header = json.loads(file.read(length)) if length <= LONGEST else {}
        found = json.loads(header["__metadata__"]["patch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None
