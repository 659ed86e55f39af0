"""Stand-ins of the Triton kernels, which check their arguments as far as the kernels trust them."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from patch.inference.backends import common_reason, unpacked
from patch.inference.packed import PackedWeight
from patch.masks.kernels import Layer, eager
from patch.masks.proximal import shrink_two_four_

from .cuda_tensor import CudaTensor, on_host
from .cuda_walk import CudaWalk


class MaskKernels:
    """Stand-in of `patch.masks.kernels.fused`: the functions of the eager kernel on the numbers in host memory."""

    def __init__(self, walk: CudaWalk) -> None:
        self._walk = walk

    def forward(self, layer: Layer, first: int, masked: Tensor) -> Tensor:
        _check_layer(layer, first, len(masked))
        _check(masked, (len(masked), layer.weight.shape[1]), layer.weight.dtype)
        self._walk.launch("mask kernel")
        return CudaTensor(eager.forward(_layer_on_host(layer), first, on_host(masked)))

    def backward(
        self,
        layer: Layer,
        first: int,
        gradient: Tensor,
        masked: Tensor | None,
        norm_gradient: Tensor,
        logits_gradient: Tensor | None,
        add: bool,
        density_gradient: Tensor | None,
    ) -> None:
        _check_layer(layer, first, len(gradient))
        shape = (len(gradient), layer.weight.shape[1])
        for part in (gradient, masked):
            if part is not None:
                _check(part, shape, layer.weight.dtype)
        assert norm_gradient.is_cuda and norm_gradient.numel() == 1 and norm_gradient.dtype == torch.float32
        if logits_gradient is not None:
            _check(logits_gradient, tuple(layer.logits.shape), torch.float32)
        if layer.tile_density is not None:
            _check(density_gradient, tuple(layer.tile_density.shape), torch.float32)
        self._walk.launch("mask kernel")
        tensors = map(on_host, (gradient, masked, norm_gradient, logits_gradient))
        eager.backward(_layer_on_host(layer), first, *tensors, add, on_host(density_gradient))


def _check(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert tensor.is_cuda and tensor.is_contiguous(), (tensor.device, tensor.stride())
    assert tuple(tensor.shape) == shape and tensor.dtype == dtype, (tensor.shape, shape, tensor.dtype, dtype)


def _check_layer(layer: Layer, first: int, rows: int) -> None:
    out, columns = layer.weight.shape
    assert layer.weight.dtype in (torch.float32, torch.bfloat16)
    _check(layer.weight, (out, columns), layer.weight.dtype)
    assert first >= 0 and rows > 0 and first + rows <= out
    assert (layer.logits is None) != (layer.bits is None)
    if layer.logits is not None:
        _check(layer.logits, (6, layer.logits.shape[1]), torch.float32)
        assert (first + rows - layer.first_row) * columns // 4 <= layer.logits.shape[1]
    else:
        _check(layer.bits, (-(-out * columns // 8) + 8,), torch.uint8)
    if layer.tile_density is not None:
        _check(layer.tile_density, (out // layer.tile[0], columns // layer.tile[1]), torch.float32)


def _layer_on_host(layer: Layer) -> Layer:
    parts = map(on_host, (layer.weight, layer.logits, layer.bits, layer.tile_density))
    return Layer(*parts, layer.tile, layer.sampling, layer.keys, layer.first_row)


class ProximalOperator:
    """Stand-in of `patch.masks.kernels.proximal_triton`: the operator of a CPU."""

    def __init__(self, walk: CudaWalk) -> None:
        self._walk = walk

    def shrink(
        self, weight: Tensor, strength: float, result: Tensor, constants: dict[str, float]
    ) -> tuple[Tensor, Tensor]:
        for tensor in (weight, result):
            _check(tensor, tuple(weight.shape), weight.dtype)
        self._walk.launch("proximal operator")
        found = on_host(weight).clone()
        statistics = shrink_two_four_(found, strength)
        on_host(result).copy_(found)
        return tuple(map(CudaTensor, statistics))


class PackedProducts:
    """Stand-in of `patch.inference.backends.fused`: products with the weight that plain PyTorch unpacks."""

    def __init__(self, walk: CudaWalk) -> None:
        self._walk = walk

    def supports(self, packed: PackedWeight, inputs: Tensor) -> str | None:
        if packed.values.device.type != "cuda":
            return f"runs on a GPU, not on {packed.values.device}"
        if reason := common_reason(packed, inputs, (torch.bfloat16, torch.float16, torch.float32)):
            return reason
        tile = packed.checked.height, packed.checked.width
        return "tiles" if any(side % 16 for side in tile) else None

    def multiply(self, packed: PackedWeight, inputs: Tensor) -> Tensor:
        assert self.supports(packed, inputs) is None and inputs.dim() == 2
        parts = packed.checked
        for part in (parts.values, parts.bits, parts.dense, parts.offsets):
            _check(part, tuple(part.shape), part.dtype)
        self._walk.launch("packed product")
        # What a backend reads of a packed weight.
        host = SimpleNamespace(**{name: on_host(part) for name, part in vars(parts).items()})
        return CudaTensor(unpacked.multiply(SimpleNamespace(checked=host), on_host(inputs)))
