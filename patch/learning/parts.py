"""States that processes share out: which columns of which tensors each holds, and how parts make a whole."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Columns:
    """Columns of a matrix that a process holds.

    Attributes:
        first: the first of them.
        count: how many.
        whole: how many the matrix has.
    """

    first: int
    count: int
    whole: int


def columns_of(masks: nn.ModuleList) -> dict[Hashable, Columns]:
    """Which pattern logits this process holds, for every key by which states know a parameter of the masks.

    These are its name in the modules' state, and its number among the parameters in optimizers', as int or text.
    """
    columns: dict[Hashable, Columns] = {}
    for number, (name, parameter) in enumerate(masks.named_parameters()):
        layer, _, kind = name.partition(".")
        if kind != "pattern_logits":
            continue
        mask, groups = masks[int(layer)], masks[int(layer)].shape[1] // 4
        first = mask.owners.own.start * groups if mask.owners else 0
        held = Columns(first, parameter.shape[1], mask.shape.numel() // 4)
        columns |= dict.fromkeys((name, number, str(number)), held)
    return columns


def assembled(parts: Sequence[Any], columns: Mapping[Hashable, Columns], here: Columns | None = None) -> Any:
    """One process' state from the parts of a state that any number of processes have saved.

    Args:
        parts: states of all that saved, in order; tensors below a key of ``columns`` that are matrices lie side by
            side, whatever else they hold is the same in all.
        columns: for the keys of parameters in states, what this process is to hold of the whole.
        here: of the key that the parts are below.

    Returns:
        A state with tensors of its own; of the parts' no more is read than it needs.
    """
    first = parts[0]
    if isinstance(first, dict):
        return {key: assembled([part[key] for part in parts], columns, columns.get(key, here)) for key in first}
    if not isinstance(first, Tensor):
        return first
    if here is None or first.dim() < 2:
        return first.clone()
    return _cut(parts, here)


def _cut(parts: Sequence[Tensor], columns: Columns) -> Tensor:
    """Columns of the matrix whose parts lie side by side."""
    widths = [part.shape[1] for part in parts]
    if sum(widths) != columns.whole:
        raise ValueError(f"parts of {widths} columns do not make {columns.whole}")
    pieces, start = [], 0
    for part, width in zip(parts, widths, strict=True):
        first, last = max(columns.first, start), min(columns.first + columns.count, start + width)
        if first < last:
            pieces.append(part[:, first - start : last - start])
        start += width
    return torch.cat(pieces, 1) if pieces else parts[0].new_empty(len(parts[0]), 0)
