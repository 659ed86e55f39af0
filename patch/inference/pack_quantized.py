"""Saving of quantized models in the form `pack-quantized` of compressed-tensors, which vLLM and transformers read.

The weights are dense: codes of four bits, eight in an int32, with a scale for each group of columns. A pruned weight is
the code 0. This module needs no other package than those of the library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patch.errors import InputError
from patch.files.io import own_directory
from patch.inference.files import write_model
from patch.masks.packed import check_layers
from patch.quantization.absmax import Quantized
from patch.quantization.model import QuantizedLayer
from patch.quantization.nibbles import pack_nibbles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BITS = 4
CODES_PER_WORD = 32 // BITS


def save_pack_quantized(model: PreTrainedModel, layers: Mapping[str, QuantizedLayer], folder: Path | str) -> None:
    """Write a model with quantized layers as a folder for `from_pretrained` and vLLM, atomically.

    All codes stay as they are. Scales are rounded to the dtype of the model, as these readers do: in bf16 by at most
    2^-8 of their value, in fp32 not at all. All layers of the folder have groups of one size, which divides their
    inputs: the greatest common divisor of the layers' group sizes and inputs. A scale is repeated if its group is
    divided.

    Args:
        model: the dense model, of which all other weights are taken; unchanged.
        layers: layer name -> its quantized weight; of four bits at most, and without an adapter.
        folder: a folder that does not exist yet, or is empty.

    Raises:
        InputError: the layers are of another model, the form cannot hold one of them, or the folder is in use.
    """
    shapes = {name: layer.weight.codes.shape for name, layer in layers.items()}
    linears = check_layers(model, shapes, "the quantized layers", "codes")
    if getattr(model.config, "quantization_config", None) is not None:
        raise InputError(f"save to {folder}: the model has a quantization_config already; give the dense model")
    sizes = [size for layer in layers.values() for size in (layer.weight.group_size, layer.weight.codes.shape[1])]
    group_size = math.gcd(*sizes)
    state = model.state_dict()
    for name, linear in linears.items():
        reason = _unfit(linear, layers[name])
        if reason:
            raise InputError(f"save to {folder}: {name} does not fit the form pack-quantized: {reason}")
        state |= _parts(name, layers[name].weight, group_size, state.pop(f"{name}.weight").dtype)
    others = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in layers]
    with own_directory(folder, "save") as temporary:
        model.config.quantization_config = _configuration(group_size, others)
        try:
            write_model(model, temporary, f"save to {folder}", state_dict=state, max_shard_size="4GB")
        finally:
            del model.config.quantization_config


def _unfit(linear: nn.Module, layer: QuantizedLayer) -> str | None:
    """Return the reason why the form cannot hold a layer; None if it can."""
    if layer.adapter is not None:
        return "it has a low-rank adapter (SLiM-LoRA); save the packed form, or quantize by absmax"
    if not isinstance(linear, nn.Linear):
        return f"it is a {type(linear).__name__}, not a Linear; save the packed form"
    if layer.weight.bits > BITS:
        return f"its codes have {layer.weight.bits} bits; quantize with `bits: {BITS}`"
    return None


def _parts(name: str, weight: Quantized, group_size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a layer with groups of ``group_size``, which divides the present ones."""
    codes, columns = weight.codes, weight.codes.shape[1]
    # The last word of a row is filled up with the lowest code, whose bits are zero.
    words = pack_nibbles(F.pad(codes, (0, -columns % CODES_PER_WORD), value=-(2 ** (BITS - 1)))).view(torch.int32)
    scales = weight.scales[:, torch.arange(0, columns, group_size) // min(weight.group_size, columns)].to(dtype)
    if not ((scales > 0) & scales.isfinite()).all():
        raise InputError(f"{name}: a scale is out of the range of {dtype}; load the model with another dtype")
    parts = {"weight_packed": words, "weight_scale": scales, "weight_shape": torch.tensor(codes.shape)}
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def _configuration(group_size: int, ignored: list[str]) -> dict[str, Any]:
    """Return the `quantization_config` of the folder."""
    weights = {"num_bits": BITS, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ignored,
    }
