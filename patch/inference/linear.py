"""A linear layer whose weight is packed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from patch.inference.backends import backend_for
from patch.inference.packed import PackedWeight, packed_bytes


class HybridLinear(nn.Module):
    """What `nn.Linear` with the weight `mask * weight` does, for inference.

    Args:
        packed: the weight.
        bias: `[out]`, or None.
        backend: name of what multiplies (see `patch.inference.backends`); None for the fastest that can.
    """

    values: Tensor
    bits: Tensor
    dense: Tensor

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None, backend: str | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.tile, self.backend = packed.tile, backend
        self.register_buffer("values", packed.values)
        self.register_buffer("bits", packed.bits)
        self.register_buffer("dense", packed.dense)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._packed: PackedWeight | None = packed
        self.register_load_state_dict_post_hook(_forget)

    @property
    def packed(self) -> PackedWeight:
        """The weight as it is now, wherever the layer was moved to."""
        known = self._packed
        if known is None or known.values is not self.values:
            shape = (self.out_features, self.in_features)
            known = self._packed = PackedWeight(shape, self.tile, self.dense, self.values, self.bits)
        return known

    def __getstate__(self) -> dict[str, Any]:
        # What is known of the weight belongs to its place in memory.
        return super().__getstate__() | {"_packed": None}

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`, of the same dtype as the weight."""
        packed = self.packed
        flat = inputs.reshape(-1, self.in_features)
        output = backend_for(packed, flat, self.backend)(packed, flat)
        if self.bias is not None:
            output += self.bias
        return output.view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, tiles and what they take, for `print(model)`."""
        sparse = int((~self.dense).sum())
        full = packed_bytes((self.out_features, self.in_features), self.tile, self.dense.numel(), self.values.itemsize)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"tile={self.tile}, sparse_tiles={sparse}/{self.dense.numel()}, of_dense={self.packed.nbytes / full:.3f}"
        )


def _forget(layer: HybridLinear, keys: Any) -> None:
    """After weights were loaded, drop what was known of those before."""
    layer._packed = None
