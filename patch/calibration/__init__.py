"""Calibration: what goes into each linear layer of a model while it reads sample text."""

from patch.calibration.statistics import InputStatistics
from patch.calibration.walk import walk_blocks

__all__ = ["InputStatistics", "walk_blocks"]
