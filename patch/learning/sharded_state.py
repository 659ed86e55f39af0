"""Sharded states: the columns of tensors that each process holds, and reassembly from the shards."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ShardColumns:
    """Columns of a matrix that a process holds.

    Attributes:
        first: number of the first of them.
        count: number of columns held.
        total: number of columns of the matrix.
    """

    first: int
    count: int
    total: int


def shard_columns(masks: nn.ModuleList) -> dict[Hashable, ShardColumns]:
    """Return the columns of the pattern logits that this process holds, by every key that states use for a parameter.

    The keys are its name in the modules' state, and its number among the parameters in the optimizer's.
    """
    columns: dict[Hashable, ShardColumns] = {}
    for number, (name, parameter) in enumerate(masks.named_parameters()):
        layer, _, kind = name.partition(".")
        if kind != "pattern_logits":
            continue
        mask, groups = masks[int(layer)], masks[int(layer)].shape[1] // 4
        first = mask.sharding.own.start * groups if mask.sharding else 0
        held = ShardColumns(first, parameter.shape[1], mask.shape.numel() // 4)
        columns |= dict.fromkeys((name, number), held)
    return columns


def assemble(
    shards: Sequence[Any], columns: Mapping[Hashable, ShardColumns], wanted: ShardColumns | None = None
) -> Any:
    """Return one process' state from the shards of a state that any number of processes have saved.

    Args:
        shards: states of all processes that saved, in order. Matrices below a key of ``columns`` lie side by side;
            everything else is the same in all.
        columns: the columns of the whole that this process is to hold, by the keys of parameters in states.
        wanted: the entry of ``columns`` for the key that the shards are below.

    Returns:
        A state with newly allocated tensors; only the required part of the shards is read.
    """
    first = shards[0]
    if isinstance(first, dict):
        return {key: assemble([shard[key] for shard in shards], columns, columns.get(key, wanted)) for key in first}
    if not isinstance(first, Tensor):
        return first
    if wanted is None or first.dim() < 2:
        return first.clone()
    return _cut(shards, wanted)


def _cut(shards: Sequence[Tensor], columns: ShardColumns) -> Tensor:
    """Return the columns of the matrix whose shards lie side by side."""
    widths = [shard.shape[1] for shard in shards]
    if sum(widths) != columns.total:
        raise ValueError(f"shards of {widths} columns do not make {columns.total}")
    pieces, start = [], 0
    for shard, width in zip(shards, widths, strict=True):
        first, last = max(columns.first, start), min(columns.first + columns.count, start + width)
        if first < last:
            pieces.append(shard[:, first - start : last - start])
        start += width
    return torch.cat(pieces, 1) if pieces else shards[0].new_empty(len(shards[0]), 0)
