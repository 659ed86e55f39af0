"""Quantisation after pruning, with optional low-rank adapters for the errors of both steps."""
