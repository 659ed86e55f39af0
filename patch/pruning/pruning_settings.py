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


class RIA(Section):
    """Settings of RIA (Zhang et al., 2024)."""

    exponent: float = Field(0.5, ge=0, description="Power of the input norms in the score.")


class RIAPermuted(RIA):
    """Settings of RIA with channel permutation (Zhang et al., 2024)."""


class ADMM(Section):
    """Settings of the weight update by ADMM (Boža, 2024)."""

    damp: float = Field(
        0.1, gt=0, description="Damping of the normalized Gram matrix, as a fraction of its mean diagonal."
    )
    iterations: int = Field(20, ge=1, description="Iterations of the weight update.")


class ADMMGrad(ADMM):
    """Settings of the weight update by ADMM with gradual selection of the mask (Boža, 2024)."""

    pruning_iterations: int = Field(
        15, ge=1, description="Iterations that select a mask, at most all; the others keep the last one."
    )


class Pruning(Section):
    """Settings of the one-shot methods. A key has the name of its method; its values are arguments of the method."""

    # Left out at their defaults, so that the digests of finished jobs stay the same.
    wanda: Wanda = Field(
        default_factory=Wanda, exclude_if=lambda wanda: wanda == Wanda(), description="Settings of Wanda."
    )
    sparsegpt: SparseGPT = Field(default_factory=SparseGPT, description="Settings of SparseGPT.")
    thanos: Thanos = Field(default_factory=Thanos, description="Settings of Thanos.")
    ria: RIA = Field(default_factory=RIA, exclude_if=lambda ria: ria == RIA(), description="Settings of RIA.")
    ria_permuted: RIAPermuted = Field(
        default_factory=RIAPermuted,
        exclude_if=lambda ria: ria == RIAPermuted(),
        description="Settings of RIA with channel permutation.",
    )
    admm: ADMM = Field(default_factory=ADMM, exclude_if=lambda admm: admm == ADMM(), description="Settings of ADMM.")
    admm_grad: ADMMGrad = Field(
        default_factory=ADMMGrad, exclude_if=lambda admm: admm == ADMMGrad(), description="Settings of ADMM-Grad."
    )
