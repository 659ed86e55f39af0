"""Arguments of the mask kernels: a layer and its sampling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Settings of the Gumbel-softmax at one step.

    Attributes:
        scale: kappa, factor of the logits.
        temperature: tau of the Gumbel-softmax.
        hard: one-hot in the forward pass, soft gradient (straight-through).
    """

    scale: float
    temperature: float
    hard: bool = False


@dataclass
class Layer:
    """One layer in one pass. Either logits or bits are None; the logits may cover some rows only, as must the calls.

    Attributes:
        weight: `[out, in]`, fp32 or bf16, contiguous.
        logits: `[6, rows * in / 4]` fp32, pattern logits of all rows, or of some.
        bits: uint8, the frozen mask, a bit a weight, as `pack_bits` makes it.
        tile_density: `[tiles along out, tiles along in]` fp32, dense fraction of each tile; None if all are sparse.
        tile: `(height, width)` of a tile in weights.
        sampling: sampling of the patterns.
        keys: keys of the noise, which is a function of an element's place in `[6, out * in / 4]`.
        first_row: first row that the logits cover.
        native: data that each kernel caches between calls, by its type.
    """

    weight: Tensor
    logits: Tensor | None
    bits: Tensor | None
    tile_density: Tensor | None
    tile: tuple[int, int]
    sampling: Sampling
    keys: tuple[int, int]
    first_row: int = 0
    native: dict[type, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
