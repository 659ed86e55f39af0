"""Clipping of gradients to one norm, over logits of which processes hold shards."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from patch.distributed.collectives import gathered


@torch.no_grad()
def clip_gradients(sharded: list[nn.Parameter], replicated: list[nn.Parameter], max_norm: float) -> None:
    """Scale all gradients as `torch.nn.utils.clip_grad_norm_` does, by the norm over all processes.

    Squares are added in fp64. Their order depends on the number of processes, but the difference is lost when the
    factor is rounded to fp32. Gradients are also multiplied by a factor of one, so that the host does not wait for it.

    Args:
        sharded: parameters of which this process holds a part.
        replicated: parameters that are the same in all processes, with the same gradients.
        max_norm: largest norm that stays unchanged.
    """
    device = next(iter([*sharded, *replicated])).device
    parts = gathered(_squares(sharded, device)) if sharded else []
    norm = sum([*parts, _squares(replicated, device)]).sqrt()
    factor = norm.new_full((), max_norm).div_(norm + 1e-6).clamp_(max=1)
    for parameter in (*sharded, *replicated):
        parameter.grad.mul_(factor)


def _squares(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """Return the sum of the squares of the gradients, in fp64."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for parameter in parameters:
        total += torch.linalg.vector_norm(parameter.grad, dtype=torch.float64).square()
    return total
