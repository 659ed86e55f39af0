"""Settings of the one-shot methods."""

from __future__ import annotations

from pydantic import Field

from patch.settings import Section


class Wanda(Section):
    """Settings of Wanda (Sun et al., 2023)."""

    shift_zero_metrics: bool = Field(
        False, description="Add the smallest positive squared input norm of a layer to each, as SLiM's code can."
    )


class SparseGPT(Section):
    """Settings of SparseGPT (Frantar and Alistarh, 2023)."""

    damp: float = Field(0.01, gt=0, description="Damping of the Hessian, as a fraction of its mean diagonal.")
    block_size: int = Field(128, ge=4, description="Columns that are pruned before the rest is updated.")


class Thanos(Section):
    """Settings of Thanos (Ilin and Richtarik, 2025)."""

    damp: float = Field(0.01, gt=0, description="Damping of the Hessian, as a fraction of its mean diagonal.")
    block_size: int = Field(512, ge=4, description="Columns that are pruned together before the rest is updated.")
    rows_at_once: int = Field(256, ge=1, description="Rows that are solved together; affects memory, not results.")


class Pruning(Section):
    """Settings of the one-shot methods. A key has the name of its method; its values are arguments of the method."""

    # Left out at its default, so that the digests of finished jobs stay the same.
    wanda: Wanda = Field(
        default_factory=Wanda, exclude_if=lambda wanda: wanda == Wanda(), description="Settings of Wanda."
    )
    sparsegpt: SparseGPT = Field(default_factory=SparseGPT, description="Settings of SparseGPT.")
    thanos: Thanos = Field(default_factory=Thanos, description="Settings of Thanos.")
