"""Backend for a weight that is 2:4 everywhere: sparse tensor cores of an NVIDIA GPU, through PyTorch.

They multiply twice as fast, which helps with many rows of inputs. PyTorch needs its own format for them, so the weight
is in memory twice: 1.125 times the bytes of a dense weight at 16 bits. The backend is therefore used only if named.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)

from patch.inference.backends import common_reason
from patch.inference.packed import PackedWeight, unpack

# Both of PyTorch's libraries need sides of the weight that are multiples of these.
SIDES = (32, 64)
# Key in `CheckedParts.cache` of the version of the values, and the weight in PyTorch's format.
CACHE_KEY = "semi_structured"


def supports(packed: PackedWeight, inputs: Tensor) -> str | None:
    """Return None if these can be multiplied, else the reason; see `patch.inference.backends`."""
    device = packed.values.device
    if reason := common_reason(packed, inputs, (torch.bfloat16, torch.float16)):
        return reason
    if device.type != "cuda" or torch.version.hip is not None:
        return f"runs on an NVIDIA GPU, not on {device}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} has no sparse tensor cores; compute capability 8.0 has"
    if packed.shape[0] % SIDES[0] or packed.shape[1] % SIDES[1]:
        return f"a weight of {list(packed.shape)}; its sides must be multiples of {list(SIDES)}"
    # The number of values shows whether there are dense tiles without a synchronization with the GPU.
    if 2 * packed.values.numel() != packed.shape[0] * packed.shape[1]:
        return "it has dense tiles; sparse tensor cores need 2:4 everywhere"
    return _format(device)[1]


def multiply(packed: PackedWeight, inputs: Tensor) -> Tensor:
    """Return the product; see `patch.inference.backends`. The first call converts the weight and caches the result."""
    if not len(inputs):
        return inputs.new_empty(0, packed.shape[0])
    cache = packed.checked.cache
    version, weight = cache.get(CACHE_KEY, (None, None))
    if version != packed.values._version:
        version, weight = cache[CACHE_KEY] = (
            packed.values._version,
            _converted(unpack(packed), _format(inputs.device)[0]),
        )
    return _linear(inputs, weight)


@cache
def _format(device: torch.device) -> tuple[type[SparseSemiStructuredTensor] | None, str | None]:
    """Return the first of PyTorch's two formats that works for a small matrix, or the reason why none does.

    cuSPARSELt is missing in some builds, and PyTorch's CUTLASS supports compute capability 8 only.
    """
    reasons = []
    for kind in (SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS):
        try:
            weight = torch.zeros(*SIDES, dtype=torch.bfloat16, device=device)
            _linear(weight.new_zeros(8, SIDES[1]), _converted(weight, kind))
        except (RuntimeError, NotImplementedError) as error:
            reasons.append(f"{kind.BACKEND}: {str(error).splitlines()[0]}")
        else:
            return kind, None
    return None, f"PyTorch {torch.__version__} does not support this GPU ({'; '.join(reasons)})"


def _converted(weight: Tensor, kind: type[SparseSemiStructuredTensor]) -> Tensor:
    with warnings.catch_warnings():
        # The format may change, which has no effect here, since it is never stored.
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
        return kind.from_dense(weight.contiguous())


def _linear(inputs: Tensor, weight: Tensor) -> Tensor:
    # PyTorch pads the rows to a multiple of eight.
    return torch.nn.functional.linear(inputs.contiguous(), weight)
