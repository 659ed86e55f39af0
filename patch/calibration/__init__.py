"""Calibration: input statistics of each linear layer on sample text."""
