"""Settings of calibration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from patch.data.corpus_settings import Use
from patch.settings import Section


class Calibration(Section):
    """Calibration text of the one-shot methods, prepared once per model and seed and shared by all of them."""

    use: Use = Field(description="Corpus and split of the calibration text.")
    samples: int = Field(128, ge=1, description="Number of calibration sequences.")
    seqlen: int = Field(2048, ge=4, description="Length of a sequence in tokens.")
    batch_size: int = Field(8, ge=1, description="Sequences per forward pass; the masks do not depend on it.")
    propagate: Literal["pruned", "dense"] = Field(
        "pruned",
        description="Inputs of a block: `pruned`, the outputs of the already pruned blocks before it, as in the "
        "papers; `dense`, the outputs of the dense blocks, whose statistics are computed once per model "
        "and seed for all methods and ratios.",
    )
