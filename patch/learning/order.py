"""Sums over the micro-batches of a step in their order: the same bits, however many processes do them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patch.distributed.collectives import gathered, world_size


class InOrder:
    """The gradients of parameters that all processes hold, summed over micro-batches that are dealt out in turn.

    An all-reduce at the end of the step has an order of its own, and from one bit on two runs part. These are few
    numbers: those of tiles.

    Args:
        parameters: without gradients at first. Of a process without others, autograd adds them up in order.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters if world_size() > 1 else []
        self._total: Tensor | None = None

    def add(self) -> None:
        """Take the gradients of the micro-batches that all processes have just done."""
        if not self._parameters:
            return
        for part in gathered(torch.cat([parameter.grad.flatten() for parameter in self._parameters])):
            self._total = part if self._total is None else self._total.add_(part)
        for parameter in self._parameters:
            parameter.grad = None

    def finish(self) -> None:
        """Give the parameters their sums."""
        if self._total is None:
            return
        sizes = [parameter.numel() for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._total.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)


def sum_in_order(values: Tensor) -> Tensor:
    """`[own micro-batches, numbers]` -> `[numbers]`, summed over all processes' micro-batches, dealt out in turn."""
    return sum(torch.stack(gathered(values), 1).flatten(0, 1))
