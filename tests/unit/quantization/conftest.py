"""Fixtures: models of every family, and their compression."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor, nn

from patch.calibration.input_statistics import InputStatistics
from patch.calibration.walk import walk_blocks
from patch.masks.nm import NM, nm_mask
from patch.quantization.model import QuantizedLayer, compensate_block
from patch.quantization.quantization_settings import Quantization

DEFAULT = Quantization(bits=4, group_size=10, rank_ratio=0.25)


def two_of_four(_: str, weight: Tensor) -> Tensor:
    return weight * nm_mask(weight.abs(), NM(2, 4))


@pytest.fixture
def compensated(sequences: Callable[..., np.ndarray]) -> Callable[..., dict[str, QuantizedLayer]]:
    """Return a function that compresses a model in place, 2:4 by magnitude."""

    def compress(model: nn.Module, settings: Quantization | None = None) -> dict[str, QuantizedLayer]:
        layers: dict[str, QuantizedLayer] = {}

        def visit(linears: dict[str, nn.Module], statistics: dict[str, InputStatistics]) -> None:
            layers.update(compensate_block(linears, statistics, two_of_four, settings or DEFAULT))

        walk_blocks(model, sequences(), visit, batch_size=4)
        return layers

    return compress
