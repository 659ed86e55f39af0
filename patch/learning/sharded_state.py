"""Sharded states: the part of each tensor that a process holds, and reassembly from the parts of all."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class StateShard:
    """Part of a tensor that a process holds: consecutive slices along one dimension.

    Attributes:
        first: number of the first slice.
        count: number of slices held.
        total: number of slices of the tensor.
        dim: the dimension: 0 for rows, 1 for columns.
    """

    first: int
    count: int
    total: int
    dim: int = 1


def logit_shards(masks: nn.ModuleList) -> dict[Hashable, StateShard]:
    """Return the columns of the pattern logits that this process holds, by every key that states use for a parameter.

    The keys are its name in the modules' state, and its number among the parameters in the optimizer's.
    """
    shards: dict[Hashable, StateShard] = {}
    for number, (name, parameter) in enumerate(masks.named_parameters()):
        layer, _, kind = name.partition(".")
        if kind != "pattern_logits":
            continue
        mask, groups = masks[int(layer)], masks[int(layer)].shape[1] // 4
        first = mask.sharding.own.start * groups if mask.sharding else 0
        held = StateShard(first, parameter.shape[1], mask.shape.numel() // 4)
        shards |= dict.fromkeys((name, number), held)
    return shards


def assemble(states: Sequence[Any], shards: Mapping[Hashable, StateShard], wanted: StateShard | None = None) -> Any:
    """Return one process' state from the states that any number of processes have saved.

    Args:
        states: states of all processes that saved, in order. Tensors below a key of ``shards`` are consecutive parts,
            but numbers such as the step are not; everything else is the same in all.
        shards: the parts that this process is to hold, by the keys of parameters in states.
        wanted: the entry of ``shards`` for the key that the states are below.

    Returns:
        A state with newly allocated tensors; only the required part of the saved states is read.
    """
    first = states[0]
    if isinstance(first, dict):
        return {key: assemble([state[key] for state in states], shards, shards.get(key, wanted)) for key in first}
    if not isinstance(first, Tensor):
        return first
    if wanted is None or first.dim() == 0:
        return first.clone()
    return _cut(states, wanted)


def _cut(parts: Sequence[Tensor], wanted: StateShard) -> Tensor:
    """Return the slices of the tensor whose parts are given in order."""
    dim, sizes = wanted.dim, [part.shape[wanted.dim] for part in parts]
    if sum(sizes) != wanted.total:
        raise ValueError(f"shards of {sizes} {('rows', 'columns')[dim]} do not make {wanted.total}")
    pieces, start = [], 0
    for part, size in zip(parts, sizes, strict=True):
        first, last = max(wanted.first, start), min(wanted.first + wanted.count, start + size)
        if first < last:
            pieces.append(part.narrow(dim, first - start, last - first))
        start += size
    return torch.cat(pieces, dim) if pieces else parts[0].narrow(dim, 0, 0).clone()
