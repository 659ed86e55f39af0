"""Masks of weights: patterns, tiles, learnable masks, and their files."""
