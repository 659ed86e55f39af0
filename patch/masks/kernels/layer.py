"""What a kernel is told of a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How choices are drawn at one step.

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
    """One layer in one pass. Logits or bits are None; logits may be those of some rows, to which calls then keep.

    Attributes:
        weight: `[out, in]`, fp32 or bf16, contiguous.
        logits: `[6, rows * in / 4]` fp32, of the patterns of all rows, or of some.
        bits: uint8, the frozen mask, a bit a weight, as `pack_bits` makes it.
        shares: `[tiles along out, tiles along in]` fp32, how dense each tile is; None where all are sparse.
        tile: `(height, width)` of a tile in weights.
        sampling: of the patterns.
        keys: of the noise, which is a function of an element's place in `[6, out * in / 4]`.
        first_row: where the rows of the logits begin.
        native: what each kernel keeps of it from call to call, by its kind.
    """

    weight: Tensor
    logits: Tensor | None
    bits: Tensor | None
    shares: Tensor | None
    tile: tuple[int, int]
    sampling: Sampling
    keys: tuple[int, int]
    first_row: int = 0
    native: dict[type, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
