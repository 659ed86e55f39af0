"""Code for `device: cuda` on a machine without a GPU, with counts of host synchronizations and kernel launches.

PyTorch's fake tensors on `cuda` cannot require gradients in a build without CUDA. A `CudaTensor` can: it reports the
device `cuda:0`, and its numbers are in host memory. The code under a `CudaWalk` therefore takes the branches that it
takes on a GPU, with results to compare. The walk stands for what PyTorch does on a GPU:

- Operations on tensors of several devices raise `DeviceMismatch`.
- Operations that make the host wait for the GPU are counted: reading a number, results whose shape depends on numbers
  (`nonzero`, an index of bools, ...), and copies between host and GPU. PyTorch waits for the end of a copy in either
  direction; with `non_blocking=True` one to the GPU returns at once, and one to the host if its memory is page-locked.
- Each operation with a result on the GPU counts as one launch, unless it is a view or allocates only. Attention counts
  as its parts.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import patch

from .cuda_tensor import BELOW, CPU, CUDA, CudaTensor, on_host

_SOURCES = str(Path(patch.__file__).parent)
# Operations whose result on a GPU the host waits for, beside copies and indices of bools.
_WAITING = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "repeat_interleave"),
    *("_unique2", "unique_dim", "unique_consecutive", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd"),
}
_ALLOCATING = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
_COPIES = {"_to_copy", "copy_"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class DeviceMismatch(AssertionError):
    """Error of an operation on tensors of several devices. Code under test that handles errors does not catch it."""


class CudaWalk:
    """Context in which tensors can be on `cuda`.

    Attributes:
        synchronizations: number of times that the host waited for the GPU, by line of this package's code.
        launches: number of kernel launches, by line.
    """

    def __init__(self) -> None:
        self.synchronizations: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> CudaWalk:
        for context in (_Names(), _Operations(self)):
            self._stack.enter_context(context)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def wait(self, operation: str) -> None:
        """Count one host synchronization."""
        self.synchronizations[f"{_line()}: {operation}"] += 1

    def launch(self, operation: str) -> None:
        """Count one kernel launch."""
        self.launches[f"{_line()}: {operation}"] += 1


class _Operations(TorchDispatchMode):
    """Mode that computes on the numbers in host memory, checks devices and counts."""

    def __init__(self, walk: CudaWalk) -> None:
        super().__init__()
        self._walk = walk
        self._page_locked: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            if func._can_decompose():
                # Without autograd, as in inference mode, an operation that is made of others arrives as a whole.
                with self:
                    return func.decompose(*args, **(kwargs or {}))
            return self._compute(func, args, dict(kwargs or {}))

    def _compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = _result_device(func, name, args, kwargs, tensors)
        if _waits(name, args, kwargs, tensors, device) and not self._to_page_locked(name, args):
            self._walk.wait(name)
        page_locked = kwargs.pop("pin_memory", None)
        if "device" in kwargs:
            kwargs["device"] = CPU
        known = {id(tensor.host): tensor for tensor in tensors if isinstance(tensor, CudaTensor)}
        arguments, options = tree_map_only(CudaTensor, on_host, (args, kwargs))
        result = func(*arguments, **options)
        if page_locked:
            self._page_locked.append(result.untyped_storage())
        if device == CUDA and _launches(func, name, tensors, result):
            self._walk.launch(name)
        for tensor in known.values():
            assert tensor.shape == tensor.host.shape, f"{name} changes the shape of a tensor in place"

        def placed(tensor: Tensor) -> Tensor:
            if id(tensor) in known:
                return known[id(tensor)]
            return CudaTensor(tensor) if device == CUDA else tensor

        return tree_map_only(Tensor, placed, result)

    def _to_page_locked(self, name: str, args: Any) -> bool:
        """Return whether an operation copies to page-locked memory without waiting."""
        if name != "copy_" or args[2:3] != (True,):
            return False
        target = on_host(args[0]).untyped_storage()._cdata
        return any(storage._cdata == target for storage in self._page_locked)


def _result_device(func: Any, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> torch.device:
    """Return the device of an operation's result.

    Raises:
        DeviceMismatch: the operation fails on a GPU.
    """
    if name == "copy_":
        return args[0].device
    if kwargs.get("device") is not None:
        return CUDA if kwargs["device"] == BELOW else CPU
    if name in _INDEXED:
        # Indices of a tensor on the GPU may be on the CPU.
        tensors = [args[0], *args[2:3], *(index for index in args[1] if index is not None and index.is_cuda)]
    if torch.Tag.pointwise in func.tags or name in ("fill_", "masked_fill", "masked_fill_", *_INDEXED):
        # The numbers of scalar tensors on the CPU are arguments of a kernel.
        tensors = [tensor for tensor in tensors if tensor.dim() or tensor.is_cuda] or tensors
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        found = ", ".join(f"{list(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise DeviceMismatch(f"{_line()}: {func} of tensors on several devices: {found}")
    return devices.pop() if devices else CPU


def _waits(name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], device: torch.device) -> bool:
    """Return whether the host waits for the GPU."""
    if name in _COPIES:
        source = args[1] if name == "copy_" else args[0]
        blocking = not (kwargs.get("non_blocking") or name == "copy_" and args[2:3] == (True,))
        return source.device != device and (blocking or device == CPU)
    if not any(tensor.is_cuda for tensor in tensors):
        return False
    if name not in _INDEXED:
        return name in _WAITING
    indices = [index for index in args[1] if index is not None]
    if len(indices) == 1 and indices[0].is_cuda and len(args) > 2 and args[2].numel() == 1:
        # PyTorch fills by a mask.
        return False
    return any(index.dtype in (torch.bool, torch.uint8) or not index.is_cuda for index in indices)


def _launches(func: Any, name: str, tensors: list[Tensor], result: Any) -> bool:
    """Return whether an operation with a result on the GPU is more than a view or an allocation."""
    if name in _ALLOCATING or name in _COPIES and any(not tensor.is_cuda for tensor in tensors):
        return False
    if func._schema.is_mutable:
        return True
    before = {on_host(tensor).untyped_storage()._cdata for tensor in tensors}
    return any(part.untyped_storage()._cdata not in before for part in tree_leaves(result) if isinstance(part, Tensor))


def _line() -> str:
    """Return the innermost line of the package's code that is running, and that of a library which it calls."""
    frame, library = sys._getframe(), ""
    while frame and not frame.f_code.co_filename.startswith(_SOURCES):
        if not library and (name := _library_file(frame.f_code.co_filename)):
            library = f" in {name}:{frame.f_lineno}"
        frame = frame.f_back
    if frame is None:
        return f"outside of the package{library}"
    name = frame.f_code.co_filename.removeprefix(f"{_SOURCES}/")
    return f"{name}:{frame.f_lineno} ({frame.f_code.co_name}){library}"


@cache
def _library_file(path: str) -> str:
    """Return the folder and name of a file that belongs neither to PyTorch nor to these tests; else nothing."""
    parts = Path(path).parts
    return "" if "torch" in parts or Path(path).parent == Path(__file__).parent else "/".join(parts[-2:])


class _Names(TorchFunctionMode):
    """Mode that replaces the device `cuda` by the one of C++ code in the arguments of PyTorch's functions."""

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = {name: _below(value) for name, value in (kwargs or {}).items()}
        if func in (torch.tensor, torch.as_tensor) and options.get("device") is not None:
            # PyTorch fills a tensor in host memory and copies it.
            return func(*args, **{**options, "device": None}).to(options["device"])
        return func(*map(_below, args), **options)


def _below(value: Any) -> Any:
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return BELOW
    return BELOW if isinstance(value, torch.device) and value.type == "cuda" else value
