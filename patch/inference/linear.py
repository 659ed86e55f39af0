"""Linear layer with a packed weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from patch.errors import InputError
from patch.inference.backends import backend_for, load
from patch.inference.checked import PARTS, SCALES, tile_counts
from patch.inference.custom_op import hybrid_linear
from patch.inference.packed import PackedWeight, packed_bytes
from patch.inference.packed_config import PackedLayer
from patch.quantization.slim_lora import Adapter


class HybridLinear(nn.Module):
    """Linear layer with the weight `mask * weight`, for inference.

    Args:
        packed: the packed weight.
        bias: `[out]`, or None.
        backend: name of a backend (see `patch.inference.backends`); None for the fastest that supports the inputs.
        adapter: low-rank matrix that is added to the weight, in the dtype of the inputs, or None.

    Raises:
        InputError: the bias or the adapter does not have the shape of the layer.
    """

    values: Tensor
    bits: Tensor
    dense: Tensor
    scales: Tensor | None
    adapter_left: Tensor | None
    adapter_right: Tensor | None

    def __init__(
        self,
        packed: PackedWeight,
        bias: Tensor | None = None,
        backend: str | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.tile, self.group_size, self.backend = packed.tile, packed.group_size, backend
        if bias is not None and bias.shape != (self.out_features,):
            raise InputError(f"the bias has the shape {list(bias.shape)}; expected [{self.out_features}]")
        for name in ("values", "bits", "dense", SCALES):
            self.register_buffer(name, getattr(packed, name))
        self.register_buffer("bias", None if bias is None else bias.detach())
        left, right = (adapter.left, adapter.right) if adapter else (None, None)
        if adapter and (left.shape[0], *right.shape) != (self.out_features, left.shape[1], self.in_features):
            found = f"{list(left.shape)} and {list(right.shape)}"
            raise InputError(f"the adapter has the shapes {found}; the layer is {list(packed.shape)}")
        self.register_buffer("adapter_left", None if left is None else left.detach())
        self.register_buffer("adapter_right", None if right is None else right.detach())
        self._packed: PackedWeight | None = packed

    @classmethod
    def empty(cls, description: PackedLayer, bias: bool, dtype: torch.dtype) -> HybridLinear:
        """Return a layer without contents, on the `meta` device, for loading.

        Args:
            description: sizes of the layer.
            bias: whether the layer has a bias.
            dtype: dtype of the weight and of the bias.
        """
        parts = {
            name: torch.empty(spec.shape, dtype=getattr(torch, spec.dtype) if spec.dtype else dtype, device="meta")
            for name, spec in description.tensors().items()
        }
        factors = [parts.pop(name) for name in ("adapter_left", "adapter_right") if name in parts]
        out = torch.empty(description.sizes[0], dtype=dtype, device="meta") if bias else None
        weight = PackedWeight(description.sizes, description.tile, **parts, group_size=description.group_size)
        return cls(weight, out, adapter=Adapter(*factors) if factors else None)

    @property
    def description(self) -> PackedLayer:
        """Description of the layer in the configuration of a saved model.

        Raises:
            InputError: the buffers were changed and are inconsistent.
        """
        checked = self.packed.checked
        return PackedLayer(
            shape=list(checked.shape),
            tile=self.tile,
            sparse_tiles=checked.bits.numel() // checked.bitmap_bytes,
            bits=None if self.group_size is None else 4,
            group_size=self.group_size,
            rank=None if self.adapter_left is None else self.adapter_left.shape[1],
        )

    @property
    def packed(self) -> PackedWeight:
        """Packed weight of the layer's current buffers.

        Raises:
            InputError: the buffers were changed and are inconsistent.
        """
        known, buffers = self._packed, self._buffers
        if (
            known is None
            or known.values is not buffers.get("values")
            or known.bits is not buffers.get("bits")
            or known.dense is not buffers.get("dense")
            or known.scales is not buffers.get(SCALES)
        ):
            known = self._weight_of({name: getattr(self, name, None) for name in self._parts})
            # A packed weight replaces tensors whose writes PyTorch does not count.
            buffers.update(known.parts)
            self._packed = known
        return known

    @property
    def _parts(self) -> tuple[str, ...]:
        return PARTS if self.group_size is None else (*PARTS, SCALES)

    def _weight_of(self, parts: dict[str, Any]) -> PackedWeight:
        return PackedWeight((self.out_features, self.in_features), self.tile, **parts, group_size=self.group_size)

    def _apply(self, *arguments: Any, **options: Any) -> HybridLinear:
        # The cached weight would keep the old memory until the next call.
        self._packed = None
        scales = self.scales
        super()._apply(*arguments, **options)
        if scales is not None and self.scales.dtype != scales.dtype:
            # A change of the model's dtype is one of its inputs and adapters; the values of the weight stay.
            self.scales = scales.to(self.scales.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict, strict: bool, *lists: list[str]
    ) -> None:
        """Load the state if its parts are consistent; else load nothing, and `load_state_dict` raises the error."""
        given = {name: state_dict[prefix + name] for name in self._buffers if prefix + name in state_dict}
        error = self._inconsistency({name: part for name, part in given.items() if name in self._parts})
        if error:
            lists[-1].append(f"{prefix}{error}")
            return
        if local_metadata.get("assign_to_params_buffers"):
            # Others could change the tensors, or the file that they are mapped from.
            copies = {prefix + name: part.clone() for name, part in given.items() if isinstance(part, Tensor)}
            state_dict = state_dict | copies
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    def _inconsistency(self, given: dict[str, Any]) -> str | None:
        """Return the reason why given parts are inconsistent with the layer's other parts; None if they are not."""
        own: dict[str, Any] = {name: getattr(self, name, None) for name in self._parts}
        for name, part in given.items():
            if isinstance(part, Tensor) and isinstance(own[name], Tensor) and part.shape != own[name].shape:
                return f"{name}: size mismatch for {name}: {list(part.shape)}; the layer has {list(own[name].shape)}"
        try:
            self._weight_of(own | {name: self._on_device(part, given) for name, part in given.items()})
        except InputError as error:
            return str(error)
        return None

    def _on_device(self, part: Any, given: dict[str, Any]) -> Any:
        """Return a part on the device of the parts that are not given."""
        others = [self._buffers[n] for n in self._parts if n not in given and self._buffers.get(n) is not None]
        return part.to(others[0].device) if others and isinstance(part, Tensor) else part

    def __getstate__(self) -> dict[str, Any]:
        # The cached weight is bound to its addresses in memory.
        return super().__getstate__() | {"_packed": None}

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`, of the same dtype as the weight, or of any if that is quantized."""
        output = self._product(inputs)
        if self.adapter_left is not None:
            output = output + linear(linear(inputs, self.adapter_right), self.adapter_left)
        return output

    def _product(self, inputs: Tensor) -> Tensor:
        """Return the product with the packed weight, plus the bias."""
        bias = self._buffers["bias"]
        # In eager mode the dispatcher and the operator's search for the checked weight would cost about 7 us a layer.
        if torch.compiler.is_compiling() and not (torch.is_grad_enabled() and inputs.requires_grad):
            parts = self.values, self.bits, self.dense
            options = self.out_features, self.tile, self.backend, self.scales, self.group_size
            output = hybrid_linear(inputs, *parts, *options)
            return output if bias is None else output + bias
        packed = self.packed
        flat = inputs.reshape(-1, self.in_features)
        output = backend_for(packed, flat, self.backend)(packed, flat)
        if bias is not None:
            output += bias
        return output.view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Return the sizes, tiles and fraction of the dense bytes, for `print(model)`."""
        # Counted by the bits, since the map of a layer on the `meta` device has no contents.
        shape, tiles, quantized = (self.out_features, self.in_features), self.dense.numel(), ""
        sparse, itemsize = self.bits.numel() // tile_counts(shape, self.tile)[1], self.values.itemsize
        held = sum(part.nbytes for name, part in self._buffers.items() if part is not None and name != "bias")
        if self.group_size is not None:
            itemsize = 2  # compared with 16 bits
            rank = 0 if self.adapter_left is None else self.adapter_left.shape[1]
            quantized = f", bits=4, group_size={self.group_size}, rank={rank}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"tile={self.tile}, sparse_tiles={sparse}/{tiles}{quantized}, "
            f"size_ratio={held / packed_bytes(shape, self.tile, tiles, itemsize):.3f}"
        )


def use_backend(model: nn.Module, name: str | None) -> None:
    """Set the backend of all packed layers of a model.

    Args:
        model: a packed model.
        name: name of a backend (see `patch.inference.backends`); None for the fastest that supports the inputs.

    Raises:
        InputError: no backend has this name, or it cannot be loaded.
    """
    if name is not None:
        load(name)
    for layer in model.modules():
        if isinstance(layer, HybridLinear):
            layer.backend = name
