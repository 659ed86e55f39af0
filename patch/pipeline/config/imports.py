"""Settings of imported masks, which were made by other software or experiments."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from patch.masks.tile_size import Tile
from patch.settings import Section


class HubMask(Section):
    """A mask file in a repository of the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(description="Repository, `owner/name`.")
    revision: str | None = Field(
        None, description="Commit, branch or tag; without it, the newest. The commit that was read is noted."
    )
    file: str = Field("mask.npz", description="File in the repository.")


class FileMask(Section):
    """A local file."""

    kind: Literal["file"] = "file"
    path: str = Field(description="`.npz` in a published format, or `.safetensors` of this software.")


class Import(Section):
    """A mask for the grid's method `import`, or a prior of learning."""

    model: str = Field(description="Name under `models`.")
    method: str = Field(description="Method that made it: the row whose published numbers stand beside it.")
    pattern: str | None = Field(None, description="Its pattern; by default what the method is made for.")
    sparsity: float | None = Field(None, description="Its nominal sparsity; N:M fixes its own.")
    tile: Tile | None = Field(None, description="Side of its tiles, if it is hybrid; by default the experiment's.")
    source: Annotated[HubMask | FileMask, Field(discriminator="kind")] = Field(description="Where the file is.")
