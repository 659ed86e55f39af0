"""Linear layer with a packed weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.inference.backends import backend_for, load
from patch.inference.checked import PARTS, tile_counts
from patch.inference.custom_op import hybrid_linear
from patch.inference.packed import PackedWeight, packed_bytes
from patch.inference.packed_config import PackedLayer


class HybridLinear(nn.Module):
    """Linear layer with the weight `mask * weight`, for inference.

    Args:
        packed: the packed weight.
        bias: `[out]`, or None.
        backend: name of a backend (see `patch.inference.backends`); None for the fastest that supports the inputs.

    Raises:
        InputError: the bias does not have the shape of the outputs.
    """

    values: Tensor
    bits: Tensor
    dense: Tensor

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None, backend: str | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.tile, self.backend = packed.tile, backend
        if bias is not None and bias.shape != (self.out_features,):
            raise InputError(f"the bias has the shape {list(bias.shape)}; expected [{self.out_features}]")
        self.register_buffer("values", packed.values)
        self.register_buffer("bits", packed.bits)
        self.register_buffer("dense", packed.dense)
        self.register_buffer("bias", None if bias is None else bias.detach())
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
        out = torch.empty(description.sizes[0], dtype=dtype, device="meta") if bias else None
        return cls(PackedWeight(description.sizes, description.tile, **parts), out)

    @property
    def description(self) -> PackedLayer:
        """Description of the layer in the configuration of a saved model.

        Raises:
            InputError: the buffers were changed and are inconsistent.
        """
        checked = self.packed.checked
        sparse = checked.bits.numel() // checked.bitmap_bytes
        return PackedLayer(shape=list(checked.shape), tile=self.tile, sparse_tiles=sparse)

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
        ):
            known = self._weight_of({name: getattr(self, name, None) for name in PARTS})
            # A packed weight replaces tensors whose writes PyTorch does not count.
            buffers.update({name: getattr(known, name) for name in PARTS})
            self._packed = known
        return known

    def _weight_of(self, parts: dict[str, Any]) -> PackedWeight:
        return PackedWeight((self.out_features, self.in_features), self.tile, **parts)

    def _apply(self, *arguments: Any, **options: Any) -> HybridLinear:
        # The cached weight would keep the old memory until the next call.
        self._packed = None
        return super()._apply(*arguments, **options)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict, strict: bool, *lists: list[str]
    ) -> None:
        """Load the state if its parts are consistent; else load nothing, and `load_state_dict` raises the error."""
        given = {name: state_dict[prefix + name] for name in self._buffers if prefix + name in state_dict}
        error = self._inconsistency({name: part for name, part in given.items() if name in PARTS})
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
        own: dict[str, Any] = {name: getattr(self, name, None) for name in PARTS}
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
        others = [self._buffers[name] for name in PARTS if name not in given and self._buffers.get(name) is not None]
        return part.to(others[0].device) if others and isinstance(part, Tensor) else part

    def __getstate__(self) -> dict[str, Any]:
        # The cached weight is bound to its addresses in memory.
        return super().__getstate__() | {"_packed": None}

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`, of the same dtype as the weight."""
        bias = self._buffers["bias"]
        # In eager mode the dispatcher and the operator's search for the checked weight would cost about 7 us a layer.
        if torch.compiler.is_compiling() and not (torch.is_grad_enabled() and inputs.requires_grad):
            parts = self.values, self.bits, self.dense
            output = hybrid_linear(inputs, *parts, self.out_features, self.tile, self.backend)
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
        bitmap_bytes = tile_counts((self.out_features, self.in_features), self.tile)[1]
        sparse, held = self.bits.numel() // bitmap_bytes, sum(getattr(self, name).nbytes for name in PARTS)
        full = packed_bytes((self.out_features, self.in_features), self.tile, self.dense.numel(), self.values.itemsize)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"tile={self.tile}, sparse_tiles={sparse}/{self.dense.numel()}, size_ratio={held / full:.3f}"
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
