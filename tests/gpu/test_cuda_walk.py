"""The walk itself: what fails on a GPU fails in it, and what the host waits for is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from .cuda_tensor import CUDA, CudaTensor, on_host
from .cuda_walk import CudaWalk, DeviceMismatch


def test_tensors_report_a_gpu_and_have_the_numbers_of_a_cpu(walk: CudaWalk) -> None:
    weight = torch.randn(3, 4)
    layer = nn.Linear(4, 3).requires_grad_(False)
    layer.weight = nn.Parameter(weight.clone())
    inputs = torch.randn(2, 4)
    expected = torch.nn.functional.linear(inputs, layer.weight, layer.bias).square().sum()
    expected.backward()
    moved = nn.Linear(4, 3)
    moved.load_state_dict(layer.state_dict())
    moved.to("cuda")
    actual = moved(inputs.to("cuda")).square().sum()
    actual.backward()
    assert actual.device == moved.weight.grad.device == CUDA and actual.is_cuda and not actual.is_cpu
    torch.testing.assert_close(on_host(actual.detach()), expected.detach())
    torch.testing.assert_close(moved.weight.grad.cpu(), layer.weight.grad)
    assert type(moved.weight.cpu()) is Tensor


@pytest.mark.parametrize(
    "operation",
    [
        lambda cuda, cpu: cuda + cpu,
        lambda cuda, cpu: cpu * cuda,
        lambda cuda, cpu: cuda @ cpu,
        lambda cuda, cpu: torch.cat([cuda, cpu]),
        lambda cuda, cpu: torch.stack([cuda.sum(), cpu.sum()]),
        lambda cuda, cpu: cpu * cuda.sum(),
        lambda cuda, cpu: cuda.index_select(0, torch.tensor([1])),
        lambda cuda, cpu: cpu[cuda > 0],
        lambda cuda, cpu: torch.where(cuda > 0, cuda, cpu),
        lambda cuda, cpu: torch.mul(cuda, 2, out=cpu),
        lambda cuda, cpu: nn.Linear(4, 4)(cuda),
    ],
)
def test_several_devices_are_an_error(operation: Callable[[Tensor, Tensor], object], walk: CudaWalk) -> None:
    with pytest.raises(DeviceMismatch, match="several devices"):
        operation(torch.ones(4, 4, device="cuda"), torch.ones(4, 4))


@pytest.mark.parametrize(
    "operation, waits",
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: float(x[0, 0]), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu", non_blocking=True), 1),
        (lambda x: torch.ones(4, 4).copy_(x), 1),
        (lambda x: x.copy_(torch.ones(4, 4)), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.masked_select(x > 0), 1),
        (lambda x: x[torch.tensor([1, 2])], 1),
        (lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64, device="cuda"), 0), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: torch.tensor([1.0], device="cuda"), 1),
        (lambda x: torch.as_tensor([1.0], device="cuda"), 1),
        (lambda x: torch.linalg.eigh(x), 1),
        (lambda x: torch.ones(4).to("cuda", non_blocking=True), 0),
        (lambda x: torch.full((), 2.0, device="cuda") * x + 1, 0),
        (lambda x: x * torch.tensor(2.0), 0),
        (lambda x: x[torch.arange(2, device="cuda")], 0),
        (lambda x: x.nonzero_static(size=3), 0),
        (lambda x: x.masked_fill_(x > 0, 1.0), 0),
        (lambda x: x.__setitem__(x > 0, 1.0), 0),
        (lambda x: x.float(), 0),
    ],
)
def test_waiting_is_counted(operation: Callable[[Tensor], object], waits: int, walk: CudaWalk) -> None:
    x = torch.eye(4, device="cuda")
    before = sum(walk.synchronizations.values())
    operation(x)
    assert sum(walk.synchronizations.values()) - before == waits, walk.synchronizations


@pytest.mark.parametrize(
    "operation, launches",
    [
        (lambda x: x + 1, 1),
        (lambda x: x.add_(1), 1),
        (lambda x: x[1:].T.reshape(-1), 1),
        (lambda x: x[1:].T.view(4, 3), 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x.cpu(), 0),
        (lambda x: torch.ones(4) + 1, 0),
        (lambda x: x.double(), 1),
        (lambda x: torch._foreach_mul_([x, x.clone()], 2.0), 2),
    ],
)
def test_launches_are_counted(operation: Callable[[Tensor], object], launches: int, walk: CudaWalk) -> None:
    x = torch.ones(4, 4, device="cuda")
    before = sum(walk.launches.values())
    operation(x)
    assert sum(walk.launches.values()) - before == launches, walk.launches


def test_data_of_a_parameter_moves_between_devices(walk: CudaWalk) -> None:
    parameter = nn.Parameter(torch.ones(2, device="cuda"))
    parameter.data = parameter.data.cpu()
    assert parameter.device.type == "cpu" and type(parameter.data) is Tensor
    parameter.data = parameter.data.to("cuda")
    assert parameter.device == CUDA and isinstance(parameter + 1, CudaTensor)
