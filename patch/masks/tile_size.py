"""Sides of tiles."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

# A tile that is larger than a layer ends with it, so this one covers any layer.
WHOLE_MATRIX = 2**20
Tile = Annotated[
    int, BeforeValidator(lambda value: WHOLE_MATRIX if value == "matrix" else value), Field(ge=4, le=WHOLE_MATRIX)
]
