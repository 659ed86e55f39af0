"""Runs of an experiment: the grid, the paths of artifacts, and the settings of stages."""
