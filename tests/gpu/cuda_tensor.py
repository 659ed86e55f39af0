"""A tensor that reports the device `cuda:0`, with its numbers in host memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
# Device of these tensors for PyTorch's C++ code, which needs no driver for it.
BELOW = torch.device("meta")


class CudaTensor(Tensor):
    """Tensor that reports the device `cuda:0`, with its numbers in host memory.

    Attributes:
        host: the numbers, a tensor without gradients.
    """

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, host: Tensor) -> CudaTensor:
        # A view of a tensor with a version counter has one too, even in inference mode.
        with torch.inference_mode(host.is_inference()):
            self = Tensor._make_wrapper_subclass(
                cls, host.size(), host.stride(), host.storage_offset(), dtype=host.dtype, device=BELOW
            )
        self.host, self._place = host, CUDA
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a CudaTensor outside of a CudaWalk")

    @property
    def device(self) -> torch.device:
        """`cuda:0`, or the CPU for a parameter that was moved there by writing its `data`."""
        return self._place

    @property
    def is_cuda(self) -> bool:
        return self._place.type == "cuda"

    @property
    def is_cpu(self) -> bool:
        return not self.is_cuda

    is_meta = property(lambda self: False)

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert value.shape == self.shape and value.dtype == self.dtype
        self.host, self._place = on_host(value), value.device

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.cpu().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return memo.setdefault(id(self), self.detach().clone().requires_grad_(self.requires_grad))

    def __repr__(self) -> str:
        return f"CudaTensor({self.host})"


def on_host(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor without a copy; for checks and stand-ins, not for code under test."""
    return tensor.host if isinstance(tensor, CudaTensor) else tensor
