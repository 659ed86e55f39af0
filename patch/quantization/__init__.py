"""Low-bit weights after pruning, with or without low-rank adapters for what both steps took away."""

from patch.quantization.absmax import Quantized, quantize, quantize_dequantize
from patch.quantization.files import load_layers, save_layers
from patch.quantization.model import (
    QuantizedLayer,
    apply_layers,
    compensate_block,
    compensate_layer,
    quantize_model,
)
from patch.quantization.slim_lora import Adapter, saliency, slim_lora

__all__ = [
    "Adapter",
    "Quantized",
    "QuantizedLayer",
    "apply_layers",
    "compensate_block",
    "compensate_layer",
    "load_layers",
    "quantize_dequantize",
    "quantize",
    "quantize_model",
    "saliency",
    "save_layers",
    "slim_lora",
]
