"""Calibration and the one-shot methods."""

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
    propagate: Literal["pruned"] = Field(
        "pruned", description="Each block sees what the already pruned blocks before it give (the papers' way)."
    )


class SparseGPT(Section):
    """Frantar and Alistarh, 2023."""

    damp: float = Field(0.01, gt=0, description="Share of the mean diagonal that is added to the Hessian's diagonal.")
    block_size: int = Field(128, ge=4, description="Columns that are pruned before the rest is updated.")


class Pruning(Section):
    """Settings of the one-shot methods."""

    sparsegpt: SparseGPT = Field(default_factory=SparseGPT, description="SparseGPT.")
