"""Settings of calibration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from patch.data.settings import Use
from patch.settings import Section


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
