"""Masks: which weights stay. Patterns, tiles, learnable choices, and their form on disk."""
