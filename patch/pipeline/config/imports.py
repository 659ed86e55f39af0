"""Settings of imported masks, which were made by other software or experiments."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from patch.masks.pattern import Tile
from patch.settings import Section


class HubMask(Section):
    """Mask file in a repository of the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(description="Repository id, `owner/name`.")
    revision: str | None = Field(
        None, description="Commit, branch or tag; by default the latest. The commit is recorded in the mask file."
    )
    file: str = Field("mask.npz", description="Path of the file in the repository.")


class FileMask(Section):
    """Local mask file."""

    kind: Literal["file"] = "file"
    path: str = Field(description="Path of a published `.npz` file or of a `.safetensors` file of this project.")


class Import(Section):
    """Mask that was made elsewhere, for the method `import` or as an initialization of learning."""

    model: str = Field(description="Name under `models`.")
    method: str = Field(description="Method that made the mask, for the comparison with published numbers.")
    pattern: str | None = Field(None, description="Pattern of the mask; by default that of the method.")
    sparsity: float | None = Field(None, description="Nominal sparsity of the mask; `N:M` patterns imply it.")
    tile: Tile | None = Field(None, description="Tile size of a hybrid mask; by default the experiment's `tile`.")
    source: Annotated[HubMask | FileMask, Field(discriminator="kind")] = Field(description="Source of the file.")
