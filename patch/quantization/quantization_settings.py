"""Settings of quantization after pruning."""

from __future__ import annotations

from pydantic import Field

from patch.settings import Section


class Quantization(Section):
    """Symmetric group-wise AbsMax quantization of the pruned weights, and SLiM-LoRA."""

    bits: int = Field(4, ge=2, le=8, description="Bits per weight.")
    group_size: int = Field(128, ge=1, description="Consecutive weights of a row that share a scale.")
    rank_ratio: float = Field(
        0.1, ge=0, le=1, description="Rank of SLiM-LoRA adapters as a fraction of the smaller layer dimension."
    )
    quantize_adapters: bool = Field(False, description="Quantize the adapters in the same way.")
