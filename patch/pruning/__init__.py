"""One-shot pruning of a whole model: each method is a pure function of a layer; the walk is shared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from patch.calibration import InputStatistics, prune_sequentially
from patch.config import Pruning
from patch.errors import InputError
from patch.masks.nm import Pattern
from patch.masks.packed import MaskSet
from patch.methods import get_method
from patch.models import prunable_linears
from patch.pruning.magnitude import magnitude
from patch.pruning.sparsegpt import sparsegpt
from patch.pruning.wanda import wanda

__all__ = ["magnitude", "prune", "sparsegpt", "wanda"]


def prune(
    model: nn.Module,
    method: str,
    pattern: Pattern,
    windows: np.ndarray | None = None,
    batch_size: int = 8,
    settings: Pruning | None = None,
    on_block: Callable[[int, int], None] = lambda index, total: None,
) -> MaskSet:
    """Prune every linear layer of the decoder blocks in place.

    Args:
        model: causal language model.
        method: `magnitude`, `wanda` or `sparsegpt`.
        pattern: `NM(2, 4)`, `Unstructured(0.5)`, ...
        windows: `[samples, seqlen]` calibration token ids; `magnitude` needs none.
        batch_size: sequences per forward pass; does not change the masks beyond rounding.
        settings: the methods' own settings.
        on_block: progress, called with the number of finished blocks and of all.

    Returns:
        The masks. The model's weights are zero outside them and, for `sparsegpt`, updated inside.

    Raises:
        InputError: the method needs calibration windows and has none, or cannot work with what they give.
    """
    settings = settings or Pruning()
    masks: dict[str, torch.Tensor] = {}

    def prune_layer(name: str, linear: nn.Linear, statistics: InputStatistics | None) -> None:
        weight = linear.weight.data
        if method == "magnitude":
            masks[name] = magnitude(weight, pattern)
        elif method == "wanda":
            masks[name] = wanda(weight, statistics, pattern)
        else:
            options = settings.sparsegpt
            masks[name], updated = sparsegpt(weight, statistics, pattern, options.damp, options.block_size)
            weight.copy_(updated)
        weight.masked_fill_(~masks[name], 0)

    def prune_block(linears: dict[str, nn.Linear], statistics: dict[str, InputStatistics]) -> None:
        for name, linear in linears.items():
            prune_layer(name, linear, statistics[name])

    needs = get_method(method).statistics
    if needs == "none":
        for name, linear in prunable_linears(model).items():
            prune_layer(name, linear, None)
    else:
        if windows is None:
            raise InputError(f"{method} needs calibration windows and got none")
        prune_sequentially(model, windows, batch_size, needs == "gram", prune_block, on_block)
    return MaskSet({name: mask.cpu() for name, mask in masks.items()}, str(pattern))
