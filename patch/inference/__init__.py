"""Inference with packed models, which are smaller and faster than dense ones.

Importing this package registers the quantization method `patch-hybrid` with transformers, so that
`AutoModelForCausalLM.from_pretrained` loads packed models.
"""

from patch.inference.convert import convert
from patch.inference.files import save
from patch.inference.linear import HybridLinear, use_backend
from patch.inference.packed import PackedWeight, pack, packed_bytes, unpack

__all__ = ["HybridLinear", "PackedWeight", "convert", "pack", "packed_bytes", "save", "unpack", "use_backend"]
