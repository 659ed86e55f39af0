"""Backends of products with a packed weight: `multiply(packed, inputs)` maps `[n, in]` to `[n, out]`, in its dtype.

A backend is a module with `multiply` and `supports(packed, inputs)`, which returns None where the backend can multiply
these, and else the reason why it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

from patch.errors import InputError
from patch.inference.packed import PackedWeight

BACKENDS = {
    "semi-structured": "patch.inference.backends.semi_structured",
    "fused": "patch.inference.backends.fused",
    "compiled": "patch.inference.backends.compiled",
    "unpacked": "patch.inference.backends.unpacked",
}
# The first backend that supports the inputs is used, unless one is named. Those of the table alone store a second copy
# of the weight.
AUTOMATIC = ("fused", "compiled", "unpacked")
Multiply = Callable[[PackedWeight, Tensor], Tensor]


def load(name: str) -> ModuleType:
    """Return the backend of a name.

    Raises:
        InputError: no backend has this name, or one of its requirements is missing.
    """
    if name not in BACKENDS:
        raise InputError(f"backend {name!r} is not one of {', '.join(BACKENDS)}")
    try:
        return import_module(BACKENDS[name])
    except ImportError as error:
        raise InputError(f"backend {name}: {error}") from None


def backend_for(packed: PackedWeight, inputs: Tensor, name: str | None = None) -> Multiply:
    """Return the backend that multiplies ``inputs`` by a weight.

    Raises:
        InputError: the named backend does not support them.
    """
    if name is not None:
        backend = load(name)
        reason = backend.supports(packed, inputs)
        if reason:
            raise InputError(f"backend {name}: {reason}")
        return backend.multiply
    able = (backend for backend in map(_if_there, AUTOMATIC) if backend and backend.supports(packed, inputs) is None)
    backend = next(able, None)
    if backend is None:
        reason = load(AUTOMATIC[-1]).supports(packed, inputs)
        raise InputError(f"the packed weight cannot be multiplied: {reason}")
    return backend.multiply


@cache
def _if_there(name: str) -> ModuleType | None:
    try:
        return load(name)
    except InputError:
        return None
