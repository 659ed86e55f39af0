"""Backend for a weight that is 2:4 everywhere: the sparse tensor cores of an NVIDIA GPU, through PyTorch.

They multiply twice as fast, which helps with many rows of inputs. But PyTorch needs its own format for them, so the
weight is in memory twice: 1.125 times the bytes of a dense one at 16 bits. This backend is therefore used only when it
is named.
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

from patch.inference.packed import PackedWeight, unpack

# Sides of a weight have to be multiples of these for either of the libraries that PyTorch has it done by.
SIDES = (32, 64)
# Key in `CheckedParts.kept`: the version of the values, and the weight that was made of them in the other format.
KEPT = "semi_structured"


def supports(packed: PackedWeight, inputs: Tensor) -> str | None:
    """Return None if these can be multiplied, else the reason; see `patch.inference.backends`."""
    device, dtype = packed.values.device, packed.values.dtype
    if inputs.device != device:
        return f"inputs on {inputs.device}, the weight on {device}"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"runs on an NVIDIA GPU, not on {device}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} has no sparse tensor cores; compute capability 8.0 has"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"a weight in {dtype}; sparse tensor cores multiply by bfloat16 and float16"
    if inputs.dtype != dtype:
        return f"inputs in {inputs.dtype}, the weight in {dtype}"
    if packed.shape[0] % SIDES[0] or packed.shape[1] % SIDES[1]:
        return f"a weight of {list(packed.shape)}; its sides have to be multiples of {list(SIDES)}"
    # That there are no more values than half is known without asking the GPU.
    if 2 * packed.values.numel() != packed.shape[0] * packed.shape[1]:
        return "has dense tiles; sparse tensor cores need 2:4 everywhere"
    if torch.is_grad_enabled() and inputs.requires_grad:
        return "has no backward pass, and the inputs ask for one"
    return _format(device)[1]


def multiply(packed: PackedWeight, inputs: Tensor) -> Tensor:
    """Return the product; see `patch.inference.backends`. The first call converts the weight and caches the result."""
    if not len(inputs):
        return inputs.new_empty(0, packed.shape[0])
    kept = packed.checked.kept
    version, weight = kept.get(KEPT, (None, None))
    if version != packed.values._version:
        version, weight = kept[KEPT] = packed.values._version, _converted(unpack(packed), _format(inputs.device)[0])
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
    return None, f"PyTorch {torch.__version__} does not do it on this GPU ({'; '.join(reasons)})"


def _converted(weight: Tensor, kind: type[SparseSemiStructuredTensor]) -> Tensor:
    with warnings.catch_warnings():
        # PyTorch warns that the format may change, which has no effect here: it is never stored.
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
        return kind.from_dense(weight.contiguous())


def _linear(inputs: Tensor, weight: Tensor) -> Tensor:
    # PyTorch itself pads the rows to a multiple of eight.
    return torch.nn.functional.linear(inputs.contiguous(), weight)
