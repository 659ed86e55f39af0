"""Projection and decoder block of a linear layer, derived from its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable


def projections(names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Return the projection and block of each layer: `model.layers.3.self_attn.q_proj` -> (`q_proj`, 3).

    The last component is the projection. The first integer is the block, 0 if there is none. A projection that occurs
    twice in a block, such as GPT-2's `c_proj` in attention and MLP, is prefixed with the component before it.
    """
    parts = {name: re.split(r"[./]", name) for name in names}
    blocks = {name: next((int(part) for part in split if part.isdigit()), 0) for name, split in parts.items()}
    counts = Counter((split[-1], blocks[name]) for name, split in parts.items())
    twice = {projection for (projection, _), count in counts.items() if count > 1}
    return {
        name: (".".join(split[-2:]) if split[-1] in twice else split[-1], blocks[name]) for name, split in parts.items()
    }


def projection_density(density: dict[str, float]) -> dict[str, float]:
    """Return the mean kept fraction of each projection over blocks; a projection has the same size in all blocks."""
    shares: dict[str, list[float]] = {}
    for name, (projection, _) in projections(density).items():
        shares.setdefault(projection, []).append(density[name])
    return {projection: sum(values) / len(values) for projection, values in shares.items()}
