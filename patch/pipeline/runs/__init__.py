"""Runs: the grid, its methods, artifact paths, settings of stages."""
