"""Tests of row sharding: each process gets the results of a single one and holds only its own rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from patch.learning.model_masks import build_masks
from patch.masks import linear
from patch.masks.learnable import LearnableMask, Sampling, begin_pass
from patch.masks.row_sharding import RowSharding, shard_rows

TURNS = 2


@dataclass
class Case:
    """Layer with its shapes and random contents."""

    seed: int
    grid: tuple[int, int]
    tile: tuple[int, int] | None
    dtype: torch.dtype
    hard: bool
    bias: bool
    checkpointed: bool
    block: int

    @property
    def shape(self) -> torch.Size:
        height, width = self.tile or (1, 4)
        return torch.Size((self.grid[0] * height, self.grid[1] * width))

    def normal(self, *shape: int, of: int = 0) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * self.seed + of))

    def mask(self, sharding: RowSharding | None = None) -> LearnableMask:
        rows, columns = self.shape
        logits = 0.02 * self.normal(6, rows * columns // 4)
        if sharding:
            logits = logits[:, sharding.own.start * columns // 4 : sharding.own.stop * columns // 4].clone()
        tiles = 0.02 * self.normal(*self.grid, of=1) if self.tile else None
        return LearnableMask(self.shape, logits, None, tiles, self.tile and max(self.tile), sharding)

    def micro_batch(self, mask: LearnableMask, index: int, passes: list[tuple[int, ...]]) -> list[Tensor]:
        """Return output, kept norm and input gradient of a forward and backward pass with its own loss."""
        sampling = Sampling(100.0, 0.7, self.hard), Sampling(25.0, 0.9, self.hard)
        begin_pass([mask], *sampling, [(self.seed, index)], [[counters] for counters in passes])
        rows, columns = self.shape
        inputs = self.normal(2, 3, columns, of=10 + index).to(self.dtype).requires_grad_()
        bias = self.normal(rows, of=2).to(self.dtype) if self.bias else None
        weight = self.normal(rows, columns, of=3).to(self.dtype)
        if self.checkpointed:
            output = checkpoint(mask.linear, inputs, weight, bias, use_reentrant=False, preserve_rng_state=False)
        else:
            output = mask.linear(inputs, weight, bias)
        wanted = self.normal(2, 3, rows, of=100 + index).to(self.dtype)
        ((output * wanted).sum() - (0.1 + index) * mask.kept_norm).backward()
        return [output.detach(), mask.kept_norm.detach(), inputs.grad]


def cases(count: int, seed: int) -> list[Case]:
    """Return random cases, with rows that fill the processor's vectors exactly, partly or several times."""
    chance, found = random.Random(seed), []
    for number in range(count):
        side = chance.choice([4, 8, 12])
        tile = chance.choice([None, (side, side), (side, side), (chance.choice([1, 3, 7]), 16)])
        grid = chance.randint(1, 7), chance.randint(1, 5)
        if tile is None:
            grid = chance.randint(1, 40), chance.randint(1, 20)
        elif tile[0] != tile[1]:
            # A tile that is larger than the layer ends with it.
            grid = (1, grid[1])
        dtype = chance.choice([torch.float32, torch.bfloat16])
        flags = [chance.random() < 0.5 for _ in range(3)]
        found.append(Case(number + 100 * seed, grid, tile, dtype, *flags, block=chance.choice([1, 50, 400, 10**6])))
    return found


def alone(case: Case, processes: int) -> dict[str, Any]:
    """Run all micro-batches in order in one process."""
    mask, found, tiles = case.mask(), [], []
    for index in range(TURNS * processes):
        found.append(case.micro_batch(mask, index, []))
        if case.tile:
            tiles.append(mask.tile_logits.grad)
            mask.tile_logits.grad = None
    return {"passes": found, "tiles": tiles, "patterns": mask.pattern_logits.grad}


def together(case: Case, processes: int, rank: int) -> dict[str, Any]:
    """Run the micro-batches of one of several processes."""
    sharding = shard_rows(case.shape[0], case.tile[0] if case.tile else 1, processes, rank, case.seed)
    mask, found, tiles = case.mask(sharding), [], []
    for turn in range(TURNS):
        passes = [(case.seed, turn * processes + other) for other in range(processes)]
        found.append(case.micro_batch(mask, turn * processes + rank, passes))
        if case.tile:
            tiles.append(mask.tile_logits.grad)
            mask.tile_logits.grad = None
    return {"passes": found, "tiles": tiles, "patterns": mask.pattern_logits.grad}


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_a_shared_layer_is_that_of_one_process_bit_for_bit(
    processes: int, in_processes: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = cases(30, processes)
    current: list[Case] = []
    monkeypatch.setattr(linear, "block_size", lambda *of: current[-1].block)

    def run(function: Callable[[Case], Any]) -> list[Any]:
        found = []
        for case in some:
            current.append(case)
            found.append(function(case))
        return found

    expected = run(lambda case: alone(case, processes))
    by_rank = in_processes(processes, lambda rank: run(lambda case: together(case, processes, rank)))
    for case, one, *many in zip(some, expected, *by_rank, strict=True):
        patterns = torch.cat([part["patterns"] for part in many], 1)
        assert torch.equal(patterns, one["patterns"]), case
        for index, (output, norm, grad_inputs) in enumerate(one["passes"]):
            found = many[index % processes]
            found_output, found_norm, found_of_inputs = found["passes"][index // processes]
            assert torch.equal(found_output, output) and torch.equal(found_of_inputs, grad_inputs), case
            torch.testing.assert_close(found_norm, norm, rtol=1e-6, atol=0)
            assert not case.tile or torch.equal(found["tiles"][index // processes], one["tiles"][index]), case
    assert any(0 in shard_rows(case.shape[0], case.tile[0], processes, 0).row_counts for case in some if case.tile)


def test_between_the_passes_only_inputs_are_alive(in_processes: Callable) -> None:
    def largest(rank: int) -> int:
        sharding, sizes = shard_rows(64, 8, 2, rank), []
        mask = LearnableMask(torch.Size((64, 64)), torch.zeros(6, 512), None, torch.zeros(8, 8), 8, sharding)
        begin_pass([mask], Sampling(1.0, 1.0), Sampling(1.0, 1.0), [(rank,)], [[(0,)], [(1,)]])
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t
        ):
            output = mask.linear(torch.randn(3, 64, requires_grad=True), torch.randn(64, 64), None)
            (output.sum() - mask.kept_norm).backward()
        return max(sizes)

    assert in_processes(2, largest) == [3 * 64] * 2


@pytest.mark.parametrize("method", ["maskllm", "patch-joint"])
def test_a_process_of_four_holds_a_quarter(
    method: str, in_processes: Callable, tiny_model: Callable, learning_settings: Callable
) -> None:
    def build() -> dict[str, LearnableMask]:
        tile = None if method == "maskllm" else 4
        return build_masks(tiny_model("llama"), method, learning_settings(), 0.4, tile, 3)

    whole = {name: mask.pattern_logits.detach() for name, mask in build().items()}
    parts = in_processes(4, lambda rank: {name: mask.pattern_logits.detach() for name, mask in build().items()})
    for name, logits in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts], 1), logits), "those of one process"
    held = [sum(logits.numel() for logits in part.values()) for part in parts]
    total = sum(logits.numel() for logits in whole.values())
    assert sum(held) == total and max(held) < 1.15 * total / 4
    # Not a view of the rows of other processes.
    for part in parts:
        assert all(logits.untyped_storage().nbytes() == 4 * logits.numel() for logits in part.values())


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 20))
def test_every_row_has_one_process(units: int, unit: int, processes: int, turn: int) -> None:
    shardings = [shard_rows(units * unit, unit, processes, rank, turn) for rank in range(processes)]
    assert [row for one in shardings for row in one.own] == list(range(units * unit))
    assert len({one.bounds for one in shardings}) == 1, "all know the same"
    assert all(one.row_counts == [len(other.own) for other in shardings] for one in shardings)
    counts = [len(one.own) / unit for one in shardings]
    assert all(count in (units // processes, -(-units // processes)) for count in counts)


def test_layers_of_few_tiles_take_turns() -> None:
    found = [[len(shard_rows(8, 8, 4, rank, turn).own) for rank in range(4)] for turn in range(4)]
    assert sorted(found) == [[0, 0, 0, 8], [0, 0, 8, 0], [0, 8, 0, 0], [8, 0, 0, 0]]
