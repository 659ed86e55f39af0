"""Walk a model block by block over calibration windows, with the statistics of each layer's input.

Blocks are found by structure. Each block gets its own keyword arguments (attention mask, rotary
embedding, ...) as the model itself passes them: families such as Gemma-3 alternate between kinds of
attention, so that one block's arguments are wrong for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patch.models import decoder_blocks


@dataclass
class InputStatistics:
    """What a layer's input looked like, in fp32.

    Attributes:
        squares: `[in]`, sum over all tokens of `x_j^2`.
        gram: `[in, in]`, sum over all tokens of `x x^T`, or None.
        sequences: number of calibration sequences.
    """

    squares: Tensor
    gram: Tensor | None
    sequences: int


@dataclass
class _BlockCall:
    """What the model passes to one block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _FirstInput(Exception):
    """Raised once the input of the first block is known: the rest of the forward pass is not needed."""


@contextmanager
def _replaced_forwards(blocks: nn.ModuleList, make: Callable[[int], Callable]) -> Iterator[None]:
    for index, block in enumerate(blocks):
        block.forward = make(index)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _record_calls(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor) -> list[_BlockCall]:
    """Every block's other arguments for a batch like ``tokens``; the blocks themselves do not run."""
    calls: list[_BlockCall] = []

    def recorder(_: int) -> Callable:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls.append(_BlockCall(args, kwargs))
            return hidden_states

        return forward

    with _replaced_forwards(blocks, recorder):
        model(tokens, use_cache=False)
    return calls


def _first_inputs(model: nn.Module, blocks: nn.ModuleList, batches: list[Tensor]) -> list[Tensor]:
    """The hidden states that enter the first block, `[batch, seqlen, hidden]` each."""
    inputs: list[Tensor] = []

    def catcher(_: int) -> Callable:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            inputs.append(hidden_states)
            raise _FirstInput

        return forward

    with _replaced_forwards(blocks, catcher):
        for batch in batches:
            try:
                model(batch, use_cache=False)
            except _FirstInput:
                continue
    return inputs


def _run(block: nn.Module, hidden: Tensor, call: _BlockCall) -> Tensor:
    output = block(hidden, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output


class _Accumulator:
    """Forward hooks on a block's linears. Layers that read the same tensor share one accumulation."""

    def __init__(self, linears: dict[str, nn.Linear], gram: bool) -> None:
        self._gram = gram
        self._sums: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._leader: dict[str, str] = {}
        # Holds the tensors themselves: an id alone could be reused by a later tensor of the same pass.
        self._seen: dict[int, tuple[Tensor, str]] = {}
        self._handles = [linear.register_forward_pre_hook(self._hook(name)) for name, linear in linears.items()]

    def _hook(self, name: str) -> Callable:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            _, leader = self._seen.setdefault(id(x), (x, name))
            self._leader[name] = leader
            if leader == name:
                self._add(name, x.reshape(-1, x.shape[-1]).float())

        return hook

    def _add(self, name: str, x: Tensor) -> None:
        gram = x.T @ x if self._gram else None
        squares = gram.diagonal().clone() if gram is not None else x.square().sum(0)
        if name in self._sums:
            old_squares, old_gram = self._sums[name]
            squares += old_squares
            if gram is not None and old_gram is not None:
                gram += old_gram
        self._sums[name] = (squares, gram)

    def next_batch(self) -> None:
        self._seen.clear()

    def finish(self, sequences: int) -> dict[str, InputStatistics]:
        for handle in self._handles:
            handle.remove()
        return {name: InputStatistics(*self._sums[leader], sequences) for name, leader in self._leader.items()}


PruneBlock = Callable[[dict[str, nn.Linear], dict[str, InputStatistics]], None]


@torch.no_grad()
def prune_sequentially(
    model: nn.Module,
    windows: np.ndarray,
    batch_size: int,
    gram: bool,
    prune_block: PruneBlock,
    on_block: Callable[[int, int], None] = lambda index, total: None,
) -> None:
    """Prune block after block; each sees the inputs that the already pruned ones before it give.

    Args:
        model: causal language model; its blocks are changed in place by ``prune_block``.
        windows: `[samples, seqlen]` token ids.
        batch_size: sequences per forward pass; the last batch may be smaller.
        gram: whether the Gram matrix of the inputs is needed, or only its diagonal.
        prune_block: called with the block's linears and their statistics, by their names in ``model``.
        on_block: called after each block with its index and their number.
    """
    device = next(model.parameters()).device
    prefix, blocks = decoder_blocks(model)
    batches = [torch.as_tensor(part.astype(np.int64), device=device) for part in _split(windows, batch_size)]
    calls = {batch.shape: _record_calls(model, blocks, batch) for batch in {b.shape: b for b in batches}.values()}
    hidden = _first_inputs(model, blocks, batches)
    for index, block in enumerate(blocks):
        linears = {f"{prefix}.{index}.{name}": m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
        accumulator = _Accumulator(linears, gram)
        for batch, states in zip(batches, hidden, strict=True):
            _run(block, states, calls[batch.shape][index])
            accumulator.next_batch()
        prune_block(linears, accumulator.finish(len(windows)))
        for position, batch in enumerate(batches):
            hidden[position] = _run(block, hidden[position], calls[batch.shape][index])
        on_block(index + 1, len(blocks))


def _split(windows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
