"""Backends of products with a packed weight.

A backend is a module with two functions: `multiply(packed, inputs)` maps `[n, in]` to `[n, out]` in the dtype of the
inputs, and `supports(packed, inputs)` returns None if the backend can multiply these, else the reason why it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference.packed import PackedWeight

BACKENDS = {
    "semi-structured": "patch.inference.backends.semi_structured",
    "fused": "patch.inference.backends.fused",
    "compiled": "patch.inference.backends.compiled",
    "unpacked": "patch.inference.backends.unpacked",
}
# Unless a backend is named, the first of these that supports the inputs is used. The semi-structured backend is not
# among them, since it stores a second copy of the weight.
AUTOMATIC = ("fused", "compiled", "unpacked")
Multiply = Callable[[PackedWeight, Tensor], Tensor]
_tuning = True


def tuning() -> bool:
    """Return whether a backend may search for the fastest configuration of its kernel on first use."""
    return _tuning


@contextmanager
def untuned() -> Iterator[None]:
    """Use the first configuration of each kernel within the block, because compiling all of them takes minutes."""
    global _tuning
    before, _tuning = _tuning, False
    try:
        yield
    finally:
        _tuning = before


def load(name: str) -> ModuleType:
    """Import a backend.

    Raises:
        InputError: no backend has this name, or one of its requirements is missing.
    """
    if name not in BACKENDS:
        raise InputError(f"backend {name!r} is not one of {', '.join(BACKENDS)}")
    try:
        return import_module(BACKENDS[name])
    except ImportError as error:
        raise InputError(f"backend {name}: {error}") from None


def common_reason(
    packed: PackedWeight, inputs: Tensor, dtypes: tuple[torch.dtype, ...], quantized: bool = False
) -> str | None:
    """Return the reason why a backend for ``dtypes`` without a backward pass cannot multiply these; None if it can.

    A quantized weight needs a backend for such (``quantized``), and inputs in one of ``dtypes``.
    """
    device, codes = packed.values.device, packed.scales is not None
    if inputs.device != device:
        return f"inputs on {inputs.device}, the weight on {device}"
    if codes and not quantized:
        return "a quantized weight; expected one that is not"
    what, dtype = ("inputs", inputs.dtype) if codes else ("a weight", packed.values.dtype)
    if dtype not in dtypes:
        return f"{what} in {dtype}; expected {' or '.join(str(each).removeprefix('torch.') for each in dtypes)}"
    if inputs.dtype != dtype:
        return f"inputs in {inputs.dtype}, the weight in {dtype}"
    if torch.is_grad_enabled() and inputs.requires_grad:
        return "it has no backward pass, and the inputs require gradients"
    return None


def backend_for(packed: PackedWeight, inputs: Tensor, name: str | None = None) -> Multiply:
    """Return the `multiply` of the named backend, else of the first automatic one that supports the inputs.

    Raises:
        InputError: the backend does not support them.
    """
    if name is not None:
        backend = load(name)
        reason = backend.supports(packed, inputs)
        if reason:
            raise InputError(f"backend {name}: {reason}")
        return backend.multiply
    reason = None
    for backend in filter(None, map(_load_if_available, AUTOMATIC)):
        reason = backend.supports(packed, inputs)
        if reason is None:
            return backend.multiply
    raise InputError(f"the packed weight cannot be multiplied: {reason}")


@cache
def _load_if_available(name: str) -> ModuleType | None:
    try:
        return load(name)
    except InputError:
        return None
