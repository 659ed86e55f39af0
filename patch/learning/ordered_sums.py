"""Sums over the micro-batches of a step in a fixed order: the same bits for any number of processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patch.distributed.collectives import gathered, world_size


class OrderedGradients:
    """Gradients of replicated parameters, summed in order over micro-batches that the processes compute in turn.

    An all-reduce at the end of the step sums in another order, and a one-bit difference makes two runs diverge. The
    gradients are small: only tile logits are replicated.

    Args:
        parameters: parameters without gradients. In a single process, autograd sums them in order.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters if world_size() > 1 else []
        self._total: Tensor | None = None

    def add(self) -> None:
        """Add the gradients of the micro-batches that all processes have just computed."""
        if not self._parameters:
            return
        for part in gathered(torch.cat([parameter.grad.flatten() for parameter in self._parameters])):
            self._total = part if self._total is None else self._total.add_(part)
        for parameter in self._parameters:
            parameter.grad = None

    def finish(self) -> None:
        """Set the gradients of the parameters to the sums."""
        if self._total is None:
            return
        sizes = [parameter.numel() for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._total.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)


def sum_in_order(values: Tensor) -> Tensor:
    """Sum `[own micro-batches, numbers]` over all processes' micro-batches, in order, to `[numbers]`."""
    return sum(torch.stack(gathered(values), 1).flatten(0, 1))
