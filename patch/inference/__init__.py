"""Inference with packed models, which are smaller and faster than dense ones."""

from patch.inference.convert import convert
from patch.inference.files import load, save
from patch.inference.linear import HybridLinear
from patch.inference.packed import PackedWeight, pack, packed_bytes, unpack

__all__ = ["HybridLinear", "PackedWeight", "convert", "load", "pack", "packed_bytes", "save", "unpack"]
