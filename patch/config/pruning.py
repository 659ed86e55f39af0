"""Calibration, the one-shot methods, and quantisation after them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from patch.config.base import Section
from patch.config.corpora import Use


class Calibration(Section):
    """The text that one-shot methods see, made once per model and seed and shared by all of them."""

    use: Use = Field(description="Corpus and part.")
    samples: int = Field(128, ge=1, description="Sequences.")
    seqlen: int = Field(2048, ge=4, description="Tokens per sequence.")
    batch_size: int = Field(8, ge=1, description="Sequences per forward pass; does not change a mask.")
    propagate: Literal["pruned", "dense"] = Field(
        "pruned",
        description="`pruned`: each block sees what the already pruned blocks before it give (the papers' way); "
        "`dense`: what the dense ones give, taken once per model and seed for all methods and ratios.",
    )


class SparseGPT(Section):
    """Frantar and Alistarh, 2023."""

    damp: float = Field(0.01, gt=0, description="Share of the mean diagonal that is added to the Hessian's diagonal.")
    block_size: int = Field(128, ge=4, description="Columns that are pruned before the rest is updated.")


class Thanos(Section):
    """Ilin and Richtarik, 2025."""

    damp: float = Field(0.01, gt=0, description="Share of the mean diagonal that is added to the Hessian's diagonal.")
    block_size: int = Field(512, ge=4, description="Columns that are pruned together before the rest is updated.")
    rows_at_once: int = Field(256, ge=1, description="Rows whose systems are solved together: memory, not results.")


class Pruning(Section):
    """Settings of the one-shot methods; a field has its method's name, and its keys are arguments of the method."""

    sparsegpt: SparseGPT = Field(default_factory=SparseGPT, description="SparseGPT.")
    thanos: Thanos = Field(default_factory=Thanos, description="Thanos.")


class Quantization(Section):
    """Symmetric group AbsMax quantisation of the pruned weights, and SLiM-LoRA."""

    bits: int = Field(4, ge=2, le=8, description="Of a weight.")
    group_size: int = Field(128, ge=1, description="Consecutive weights of a row that share a scale.")
    rank_ratio: float = Field(
        0.1, ge=0, le=1, description="Rank of SLiM-LoRA's adapters, as a share of the smaller side of a layer."
    )
    quantize_adapters: bool = Field(False, description="Round the adapters to the same kind of grid.")
