"""Gradients of pattern logits in the host's memory, for models whose logits with gradients and moments fill a GPU.

Each copy is queued on the stream of the arithmetic, behind the kernel that writes its source and before the one that
reads its result. So neither the host nor another stream has to wait, and a GPU holds the gradient of one layer at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from patch.errors import InputError
from patch.masks.linear import Sink

# fp32 numbers of a block of page-locked memory: 2 GiB. PyTorch rounds an allocation up to a power of two bytes.
BLOCK = 1 << 29


class HostMemory:
    """Source of fp32 tensors in host memory, page-locked for `cuda`, so that copies do not wait.

    They are parts of a few large blocks, since each allocation is rounded up.
    """

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._free = torch.empty(0)

    def empty(self, shape: torch.Size) -> Tensor:
        """Return an uninitialized tensor.

        Raises:
            InputError: the host has no more memory that can be page-locked.
        """
        count = math.prod(shape)
        if not self._pinned:
            return torch.empty(shape)
        if count > BLOCK:
            return _page_locked(count).view(shape)
        if count > len(self._free):
            self._free = _page_locked(BLOCK)
        found, self._free = self._free[:count], self._free[count:]
        return found.view(shape)


def _page_locked(count: int) -> Tensor:
    try:
        return torch.empty(count, pin_memory=True)
    except RuntimeError as error:
        raise InputError(
            f"{4 * count / 1e9:.1f} GB of the host's memory cannot be page-locked ({str(error).splitlines()[0]}); ask "
            "for more memory, or set `resources.offload` to false and use more GPUs"
        ) from error


class HostSink(Sink):
    """Destination of the gradients of a layer's logits in host memory."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._host: Tensor | None = None
        self._factor: Tensor | None = None

    @contextmanager
    def open(self, logits: Tensor) -> Iterator[tuple[Tensor, bool]]:
        if self._host is None:
            self._host = self._memory.empty(logits.shape)
        add = self.adds
        gradient = self._loaded(logits) if add else torch.empty_like(logits)
        yield gradient, add
        self._host.copy_(gradient, non_blocking=True)
        self.adds, self._factor = True, None

    def gradient(self, logits: Tensor) -> Tensor:
        gradient = self._loaded(logits)
        return gradient if self._factor is None else gradient.mul_(self._factor)

    def scale(self, logits: Tensor, factor: Tensor) -> None:
        self._factor = factor

    def _loaded(self, logits: Tensor) -> Tensor:
        """Return a copy on the device of the logits."""
        return torch.empty_like(logits).copy_(self._host, non_blocking=True)
