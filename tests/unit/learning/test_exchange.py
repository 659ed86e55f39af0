"""Tests of exchanges beside the arithmetic: their schedule, and the results of one process in any order of layers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from patch.masks import exchange, sharded_linear
from patch.masks.exchange import Exchanges
from patch.masks.learnable import LearnableMask, Sampling, begin_pass
from patch.masks.row_sharding import shard_rows

SIDE, TILE, LAYERS = 16, 4, 4
SAMPLING = Sampling(100.0, 0.7), Sampling(25.0, 0.9)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Pass:
    """Order of the layers in a pass of every process.

    Attributes:
        blocks: layers of each block, in order.
        checkpointed: recompute blocks in the backward pass.
        looks: run all layers once before, without gradients.
    """

    blocks: list[list[int]]
    checkpointed: bool = False
    looks: bool = False


class Chain:
    """Layers of one size, one after another in any order, in one process or in one of several."""

    def __init__(self, processes: int = 1, rank: int = 0, tiled: bool = True) -> None:
        exchanges, self.processes, self.rank = Exchanges(), processes, rank
        self.masks, self.weights = [], [normal(SIDE, SIDE, seed=layer) for layer in range(LAYERS)]
        for layer in range(LAYERS):
            logits, sharding = 0.02 * normal(6, SIDE * SIDE // 4, seed=10 + layer), None
            if processes > 1:
                sharding = shard_rows(SIDE, TILE, processes, rank, layer)
                logits = logits[:, sharding.own.start * SIDE // 4 : sharding.own.stop * SIDE // 4].clone()
            tiles = 0.02 * normal(SIDE // TILE, SIDE // TILE, seed=20 + layer) if tiled else None
            self.masks.append(
                LearnableMask(
                    torch.Size((SIDE, SIDE)), logits, None, tiles, TILE if tiled else None, sharding, exchanges
                )
            )

    def block(self, values: Tensor, layers: Iterable[int]) -> Tensor:
        for layer in layers:
            values = self.masks[layer].linear(values, self.weights[layer], None)
        return values

    def micro_batch(self, order: Pass, index: int) -> list[Tensor]:
        """Return output and gradients of the input and tiles of a pass with its own loss."""
        first = index - self.rank
        together = range(first, first + self.processes) if self.processes > 1 else ()
        counters = [[(other, layer) for layer in range(LAYERS)] for other in (index, *together)]
        begin_pass(self.masks, *SAMPLING, counters[0], counters[1:])
        values = inputs = normal(3, SIDE, seed=100 + index).requires_grad_()
        if order.looks:
            with torch.no_grad():
                self.block(values, range(LAYERS))
        for layers in order.blocks:
            if order.checkpointed:
                values = checkpoint(self.block, values, layers, use_reentrant=False, preserve_rng_state=False)
            else:
                values = self.block(values, layers)
        used = [self.masks[layer] for layers in order.blocks for layer in layers]
        loss = values.sum() - (0.1 + index) * sum(mask.kept_norm for mask in used)
        (loss + sum(mask.density() for mask in self.masks)).backward()
        tiles = [mask.tile_logits for mask in self.masks if mask.tile_logits is not None]
        found = [values.detach(), inputs.grad, *(logits.grad for logits in tiles)]
        for logits in tiles:
            logits.grad = None
        return found

    def run(self, orders: list[Pass]) -> dict[str, list[Any]]:
        found = [self.micro_batch(order, turn * self.processes + self.rank) for turn, order in enumerate(orders)]
        return {"passes": found, "patterns": [mask.pattern_logits.grad for mask in self.masks]}


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("processes", [2, 4])
def test_any_order_of_layers_is_that_of_one_process_bit_for_bit(
    processes: int, tiled: bool, in_processes: Callable
) -> None:
    usual, recomputed = [[0, 1], [2, 3]], Pass([[0, 1], [2, 3]], checkpointed=True)
    orders = [Pass(usual, looks=True), Pass(usual), Pass(usual), recomputed, recomputed, Pass([[3], [1]]), Pass(usual)]
    orders += [recomputed, Pass([[1], [0]], checkpointed=True), Pass([[2]])]
    one = Chain(tiled=tiled)
    expected = [
        one.micro_batch(order, turn * processes + rank)
        for turn, order in enumerate(orders)
        for rank in range(processes)
    ]
    parts = in_processes(processes, lambda rank: Chain(processes, rank, tiled).run(orders))
    for index, values in enumerate(expected):
        found = parts[index % processes]["passes"][index // processes]
        assert len(found) == len(values) == 2 + tiled * LAYERS
        assert all(torch.equal(*pair) for pair in zip(found, values, strict=True)), orders[index // processes]
    for layer, mask in enumerate(one.masks):
        assert torch.equal(torch.cat([part["patterns"][layer] for part in parts], 1), mask.pattern_logits.grad)


def test_a_layer_that_is_used_twice(in_processes: Callable) -> None:
    """The sums over passes and uses have another order."""
    orders, one = 3 * [Pass([[2, 2, 1]])], Chain()
    expected = [one.micro_batch(order, index) for index, order in enumerate(2 * orders)]
    parts = in_processes(2, lambda rank: Chain(2, rank).run(orders))
    for index, values in enumerate(expected):
        torch.testing.assert_close(parts[index % 2]["passes"][index // 2], values)
    found = torch.cat([part["patterns"][2] for part in parts], 1)
    torch.testing.assert_close(found, one.masks[2].pattern_logits.grad, rtol=1e-4, atol=1e-2)


def traced(orders: list[Pass], rank: int, patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the events of each pass: weights sent and awaited, gradients sent and added to those of the logits."""
    chain, events = Chain(2, rank), []
    numbers = {mask._sharded: number for number, mask in enumerate(chain.masks)}

    class Weight(exchange.MaskedWeight):
        def __init__(self, need: exchange.Need) -> None:
            self.number = numbers[need.layer]
            events.append(f"send {self.number}")
            super().__init__(need)

        def wait(self) -> None:
            events.append(f"use {self.number}")
            super().wait()

    class Gradient(exchange.Gradient):
        def __init__(self, layer: exchange.ShardedLayer, *rest: Any) -> None:
            events.append(f"return {numbers[layer]}")
            super().__init__(layer, *rest)

        def finish(self) -> Any:
            events.append(f"add {numbers[self.layer]}")
            return super().finish()

    patch.setattr(exchange, "MaskedWeight", Weight)
    patch.setattr(sharded_linear, "Gradient", Gradient)
    found = []
    for turn, order in enumerate(orders):
        chain.micro_batch(order, 2 * turn + rank)
        found.append(events[:])
        events.clear()
    return found


# A line for each layer of a pass, in order.
SCHEDULE = """
send 0, send 1, use 0
send 2, use 1
send 3, use 2
use 3
send 2, use 3, return 3
send 1, use 2, add 3, return 2
send 0, use 1, add 2, return 1
use 0, add 1, return 0
add 0
"""
RECOMPUTED = """
send 0, send 1, use 0
send 2, use 1
send 3, use 2
send 2, use 3
send 3, use 2
use 3
send 2, use 3, return 3
send 0, use 2, add 3, return 2
send 1, use 0
use 1
send 0, use 1, add 2, return 1
use 0, add 1, return 0
add 0
"""


@pytest.mark.parametrize(("checkpointed", "schedule"), [(False, SCHEDULE), (True, RECOMPUTED)])
def test_the_next_weight_is_sent_before_a_layer_computes(
    checkpointed: bool, schedule: str, in_processes: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Pass([[0, 1], [2, 3]], checkpointed)
    for first, *later in in_processes(2, lambda rank: traced(3 * [order], rank, monkeypatch)):
        assert later == 2 * [schedule.strip().replace("\n", ", ").split(", ")]
        # The first pass does not know the order.
        assert all(use == f"use {send[-1]}" for send, use in zip(first, first[1:], strict=False) if "send" in send)


def test_a_weight_that_is_not_needed_is_dropped(in_processes: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = [Pass([[0, 1]]), Pass([[0, 2]])]
    for _, found in in_processes(2, lambda rank: traced(orders, rank, monkeypatch)):
        assert found[:6] == ["send 0", "send 1", "use 0", "use 1", "send 2", "use 2"]
        assert found[6:] == ["send 2", "use 2", "return 2", "send 0", "use 0", "add 2", "return 0", "add 0"]


def test_masks_are_freed_with_their_last_reference(in_processes: Callable) -> None:
    def alive(rank: int) -> bool:
        chain = Chain(2, rank)
        chain.run(2 * [Pass([[0, 1], [2, 3]], checkpointed=True)])
        mask = weakref.ref(chain.masks[0])
        del chain
        gc.collect()
        return mask() is not None

    assert in_processes(2, alive) == [False, False]
