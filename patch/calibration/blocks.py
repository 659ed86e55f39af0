"""Calls of a model's decoder blocks one by one, with the model's own arguments.

Blocks are found by structure. Each block gets the arguments (attention mask, rotary embedding, cache, ...) that the
model passes to it: families such as Gemma 3 alternate between kinds of attention, so that one block's arguments are
wrong for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockCall:
    """Arguments that the model passes to one block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, states: Tensor) -> Tensor:
        """Return the block's output hidden states for ``states``."""
        output = block(states, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


class _EnoughSeen(Exception):
    """Exception that ends a forward pass early."""


@contextmanager
def _replaced_forwards(blocks: nn.ModuleList, forward: Callable) -> Iterator[None]:
    # A block may override its class's forward.
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block, previous in zip(blocks, own, strict=True):
            if previous is None:
                del block.forward
            else:
                block.forward = previous


def record_calls(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor, device: torch.device) -> list[BlockCall]:
    """Return every block's arguments for a batch like ``tokens``, on ``device``, without running the blocks."""
    calls: list[BlockCall] = []
    move = _mover(device)
    output = _at_first_block(model, blocks, tokens[:1, :4], blocks[0].forward)

    def recorder(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(BlockCall(move(args), move(kwargs)))
        # In some families a block returns a tuple, which the model unpacks.
        return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

    with _replaced_forwards(blocks, recorder):
        model(tokens, use_cache=False)
    return calls


def first_inputs(model: nn.Module, blocks: nn.ModuleList, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the hidden states that enter the first block, `[batch, seqlen, hidden]`, batch by batch."""
    for tokens in batches:
        yield _at_first_block(model, blocks, tokens, lambda hidden_states, *args, **kwargs: hidden_states)


def _at_first_block(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor, call: Callable) -> Any:
    """Return the result of ``call`` for the first block's arguments, without the rest of the forward pass."""
    results: list[Any] = []

    def catcher(*args: Any, **kwargs: Any) -> None:
        results.append(call(*args, **kwargs))
        raise _EnoughSeen

    with _replaced_forwards(blocks, catcher), suppress(_EnoughSeen):
        model(tokens, use_cache=False)
    return results[0]


def _mover(device: torch.device) -> Callable[[Any], Any]:
    """Return a function that copies nested arguments to a device; a shared tensor is copied once."""
    # Keeps the originals alive, since an id could be reused.
    moved: dict[int, tuple[Tensor, Tensor]] = {}

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return moved.setdefault(id(value), (value, value.to(device)))[1]
        if isinstance(value, dict):
            return {key: move(part) for key, part in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(move(part) for part in value)
        return value

    return move
