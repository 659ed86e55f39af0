"""Sharded states: the columns of tensors that each process holds, and reassembly from the shards."""

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
        first: number of the first of them.
        count: number of columns held.
        whole: number of columns of the matrix.
    """

    first: int
    count: int
    whole: int


def columns_of(masks: nn.ModuleList) -> dict[Hashable, Columns]:
    """Return the columns of the pattern logits that this process holds, by every key that states use for a parameter.

    The keys are its name in the modules' state, and its number among the parameters in optimizers', as int or text.
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
    """Return one process' state from the shards of a state that any number of processes have saved.

    Args:
        parts: states of all processes that saved, in order. Matrices below a key of ``columns`` lie side by side;
            everything else is the same in all.
        columns: the columns of the whole that this process is to hold, by the keys of parameters in states.
        here: the entry of ``columns`` for the key that the parts are below.

    Returns:
        A state with tensors of its own; no more is read of the shards than it needs.
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
    """Return the columns of the matrix whose shards lie side by side."""
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
