"""In-place quantisation of a model's prunable layers, with low-rank adapters beside their sparse weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError
from patch.masks.packed import check_layers
from patch.models.loading import prunable_linears, weight_matrix
from patch.quantization.absmax import Quantized, quantize
from patch.quantization.quantization_settings import Quantization
from patch.quantization.slim_lora import Adapter, adapter_rank, saliency, slim_lora


@dataclass(frozen=True)
class QuantizedLayer:
    """Replacement of a layer's weight: `weight.dequantize()`, plus the optional adapter."""

    weight: Quantized
    adapter: Adapter | None = None


@torch.no_grad()
def quantize_model(model: nn.Module, bits: int = 4, group_size: int = 128) -> dict[str, QuantizedLayer]:
    """Quantise the weights of a pruned model in place, without compensation; zeros stay zeros.

    Returns:
        Layer name -> its codes, on the CPU.

    Raises:
        InputError: as `quantize`; the layers before the one at fault are changed.
    """
    return _replace(prunable_linears(model), lambda name, weight: QuantizedLayer(quantize(weight, bits, group_size)))


@torch.no_grad()
def compensate_block(
    linears: Mapping[str, nn.Module],
    statistics: Mapping[str, InputStatistics],
    pruned: Callable[[str, Tensor], Tensor],
    settings: Quantization,
) -> dict[str, QuantizedLayer]:
    """Prune, quantise and compensate the layers of a block in place.

    `patch.calibration.walk.walk_blocks` provides the layers and their statistics block by block.

    Args:
        linears: the block's linear layers with their original weights, by name.
        statistics: statistics of their inputs, by name.
        pruned: function that returns a layer's pruned `[out, in]` weight from its name and
            its original weight, which it must not change.
        settings: settings of the quantisation and the adapters.

    Returns:
        Layer name -> codes and an adapter in the layer's dtype, on the CPU.

    Raises:
        InputError: as `compensate_layer`; the layers before the one at fault are changed.
    """
    return _replace(
        linears, lambda name, weight: compensate_layer(weight, pruned(name, weight), statistics[name], settings)
    )


def _replace(
    linears: Mapping[str, nn.Module], compressed: Callable[[str, Tensor], QuantizedLayer]
) -> dict[str, QuantizedLayer]:
    """Replace the weights of layers by the results of ``compressed`` for their names and weights; return these."""
    layers: dict[str, QuantizedLayer] = {}
    for name, linear in linears.items():
        try:
            layer = compressed(name, weight_matrix(linear))
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from None
        _place(linear, layer)
        weight, adapter = layer.weight, layer.adapter
        codes = Quantized(weight.codes.cpu(), weight.scales.cpu(), weight.bits, weight.group_size)
        layers[name] = QuantizedLayer(codes, adapter and adapter.to("cpu"))
    return layers


def compensate_layer(
    original: Tensor, pruned: Tensor, statistics: InputStatistics, settings: Quantization
) -> QuantizedLayer:
    """Quantise a pruned weight and fit an adapter to the error of both steps.

    Args:
        original: `[out, in]`, the weight before pruning.
        pruned: `[out, in]`, with zeros where it is pruned; possibly updated elsewhere.
        statistics: statistics of the layer's input.
        settings: settings of the quantisation and the adapter.

    Returns:
        The layer, with an adapter in the dtype of ``original``, or without one if the rank is 0.

    Raises:
        InputError: as `quantize`, `saliency` and `adapter_rank`.
    """
    weight = quantize(pruned, settings.bits, settings.group_size)
    if not adapter_rank(*original.shape, settings.rank_ratio):
        return QuantizedLayer(weight)
    adapter = slim_lora(original, weight.dequantize(), saliency(statistics), settings.rank_ratio)
    if settings.quantize_adapters:
        adapter = adapter.quantized(settings.bits, settings.group_size)
    return QuantizedLayer(weight, adapter.to(original.dtype))


@torch.no_grad()
def apply_layers(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> None:
    """Set the weights and adapters of ``model`` and remove its previous adapters.

    Raises:
        InputError: the layers belong to another model; nothing is changed.
    """
    shapes = {name: layer.weight.codes.shape for name, layer in layers.items()}
    for name, linear in check_layers(model, shapes, "the quantised layers", "codes").items():
        _place(linear, layers[name])


def _place(linear: nn.Module, layer: QuantizedLayer) -> None:
    weight_matrix(linear).copy_(layer.weight.dequantize())
    detach_adapter(linear)
    if layer.adapter is not None:
        attach_adapter(linear, layer.adapter)


def attach_adapter(linear: nn.Module, adapter: Adapter) -> None:
    """Register a hook that adds `x @ right.T @ left.T` to a linear layer's output.

    The factors are frozen parameters of the layer, `adapter_left` and `adapter_right`. They follow it to other devices.
    The weight stays sparse, and the model gets no further linear layers.
    """
    detach_adapter(linear)
    weight = linear.weight
    for side, factor in (("left", adapter.left), ("right", adapter.right)):
        value = factor.to(weight.device, weight.dtype, copy=True)
        linear.register_parameter(f"adapter_{side}", nn.Parameter(value, requires_grad=False))
    linear.adapter_hook = linear.register_forward_hook(_add_adapter)


def detach_adapter(linear: nn.Module) -> None:
    """Undo `attach_adapter`; a layer without an adapter stays unchanged."""
    if hasattr(linear, "adapter_hook"):
        linear.adapter_hook.remove()
        del linear.adapter_hook, linear.adapter_left, linear.adapter_right


def _add_adapter(linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + F.linear(F.linear(inputs[0], linear.adapter_right), linear.adapter_left)
