"""Product with a packed weight as the registered operator `patch_hybrid::linear`.

`torch.compile`, CUDA-graph capture and other engines see one operator instead of the code of a backend. An operator
gets tensors alone, so the checked weight of these tensors is kept here while they live.

`hybrid_linear(inputs, values, bits, dense, out_features, tile, backend=None, scales=None, group_size=None)` maps
inputs `[..., in]` to `[..., out]`, without gradients. The inputs have the dtype of the values, or any floating one if
these are codes. The parts of the weight are those of `PackedWeight`, and the backend is one of
`patch.inference.backends`, None for the fastest that supports the inputs. It raises InputError if the parts are
inconsistent, or the backend does not support them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from patch.errors import InputError
from patch.inference.backends import backend_for
from patch.inference.checked import PARTS, SCALES
from patch.inference.packed import PackedWeight

_LIBRARY = torch.library.Library("patch_hybrid", "DEF")
_LIBRARY.define(
    "linear(Tensor inputs, Tensor values, Tensor bits, Tensor dense, int out_features, int tile, "
    "str? backend=None, Tensor? scales=None, int? group_size=None) -> Tensor"
)
# Values of a weight -> the weight. Its tensors are aliases, which do not keep the key alive.
_WEIGHTS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@torch.library.impl(_LIBRARY, "linear", "CompositeExplicitAutograd")
def _linear(
    inputs: Tensor,
    values: Tensor,
    bits: Tensor,
    dense: Tensor,
    out_features: int,
    tile: int,
    backend: str | None = None,
    scales: Tensor | None = None,
    group_size: int | None = None,
) -> Tensor:
    if torch.is_grad_enabled() and inputs.requires_grad:
        raise InputError("patch_hybrid::linear has no backward pass; call it under torch.no_grad()")
    parts = dict(zip(PARTS, (dense, values, bits), strict=True)) | ({} if scales is None else {SCALES: scales})
    weight = _weight((out_features, inputs.shape[-1]), tile, parts, group_size)
    flat = inputs.reshape(-1, inputs.shape[-1])
    return backend_for(weight, flat, backend)(weight, flat).view(*inputs.shape[:-1], out_features)


@torch.library.register_fake("patch_hybrid::linear")
def _shape(
    inputs: Tensor,
    values: Tensor,
    bits: Tensor,
    dense: Tensor,
    out_features: int,
    tile: int,
    backend: str | None = None,
    scales: Tensor | None = None,
    group_size: int | None = None,
) -> Tensor:
    # PyTorch also calls this if only some of the tensors are on the `meta` device.
    if len({part.device for part in (inputs, values, bits, dense, scales) if part is not None}) > 1:
        raise InputError(f"inputs on {inputs.device}, the weight on {values.device}, {bits.device} and {dense.device}")
    return inputs.new_empty(*inputs.shape[:-1], out_features)


def _weight(shape: tuple[int, int], tile: int, parts: dict[str, Tensor], group_size: int | None) -> PackedWeight:
    """Return the checked weight of these parts; it is checked again if a part has moved or changed since."""
    if any(part.is_inference() for part in parts.values()):
        raise InputError("a part was made under torch.inference_mode, where writes are not counted; clone it outside")
    known = _WEIGHTS.get(parts["values"])
    if known is None or not known.matches(shape, tile, parts, group_size):
        detached = {name: part.detach() for name, part in parts.items()}
        known = _WEIGHTS[parts["values"]] = PackedWeight(shape, tile, **detached, group_size=group_size)
    return known


hybrid_linear = torch.ops.patch_hybrid.linear.default
