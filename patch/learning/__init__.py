"""Mask learning on frozen weights."""
