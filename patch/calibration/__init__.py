"""Calibration: the inputs of each linear layer while a model reads sample text."""
