"""Settings of the one-shot methods."""

from __future__ import annotations

from pydantic import Field

from patch.settings import Section


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
