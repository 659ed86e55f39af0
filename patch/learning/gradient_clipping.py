"""Clipping of gradients to one norm, over logits of which processes hold shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from patch.distributed.collectives import gathered
from patch.masks.learnable import LearnableMask


@torch.no_grad()
def clip_gradients(masks: Sequence[LearnableMask], max_norm: float) -> None:
    """Scale all gradients as `torch.nn.utils.clip_grad_norm_` does, by the norm over all processes.

    Squares are added in fp64. Their order depends on the number of processes, but the difference is lost when the
    factor is rounded to fp32. Gradients are also multiplied by a factor of one, so that the host does not wait for it.

    Args:
        masks: masks of a model's layers, with the gradients of a step. Those of the tile logits are the same in all
            processes; each process has those of its shard of the pattern logits.
        max_norm: largest norm that stays unchanged.
    """
    device = masks[0].device
    patterns = [mask for mask in masks if mask.pattern_logits is not None]
    parts = gathered(_squares((mask.pattern_gradient() for mask in patterns), device)) if patterns else []
    tiles = _squares((mask.tile_logits.grad for mask in masks if mask.tile_logits is not None), device)
    norm = sum([*parts, tiles]).sqrt()
    factor = norm.new_full((), max_norm).div_(norm + 1e-6).clamp_(max=1)
    for mask in masks:
        mask.scale_gradients(factor)


def _squares(gradients: Iterable[Tensor], device: torch.device) -> Tensor:
    """Return the sum of the squares of gradients, in fp64."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for gradient in gradients:
        total += torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
    return total
