"""Random weights, masks and models, dense and packed, that the inference benchmarks compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from patch.inference.packed import PackedWeight
    from patch.inference.timing import Measurement
    from patch.masks.packed import MaskSet
    from patch.models.shapes import Shape

TILE = GROUP_SIZE = 128
SPARSITIES = (25, 35, 45, 50)
# Least number of bytes read between two uses of a copy: more than the caches of a server's processor.
BETWEEN = 2_000_000_000


def random_masks(weight: Tensor, sparsity: int, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """Return a random hybrid mask of a sparsity in percent, and its map of dense tiles, on the weight's device."""
    import torch

    from patch.masks.tile import expand_tiles, tile_grid

    grid = tile_grid(weight.shape, tile)
    tiles = torch.zeros(math.prod(grid), dtype=torch.bool, device=weight.device)
    order = torch.randperm(len(tiles), device=weight.device)
    tiles[order[: round((1 - sparsity / 50) * len(tiles))]] = True
    kept = torch.rand(weight.numel() // 4, 4, device=weight.device).argsort(1) < 2
    tiles = tiles.view(grid)
    return kept.view(weight.shape) | expand_tiles(tiles, weight.shape), tiles


def random_packed(weight: Tensor, sparsity: int, quantized: bool = False, tile: int = TILE) -> PackedWeight:
    """Pack a weight under a random mask."""
    from patch.inference.packed import pack
    from patch.quantization.absmax import quantize

    mask, tiles = random_masks(weight, sparsity, tile)
    return pack(quantize(weight, 4, GROUP_SIZE) if quantized else weight, mask, tiles, tile)


def copied(packed: PackedWeight) -> PackedWeight:
    """Return a copy in memory of its own."""
    from patch.inference.packed import PackedWeight

    parts = {name: part.clone() for name, part in packed.parts.items()}
    return PackedWeight(packed.shape, packed.tile, **parts, group_size=packed.group_size)


def copies_between(weights: Mapping[str, Any], between: int = BETWEEN) -> int:
    """Return the number of copies of each weight that no cache holds when each is used in turn."""
    return max(2, math.ceil(between / sum(one.nbytes for one in weights.values())))


def dense_calls(copies: list[Tensor], inputs: Tensor) -> list[Callable[[], Tensor]]:
    """Return PyTorch's dense product with each copy of a weight; the copies may be of its semi-structured types."""
    from torch.nn.functional import linear

    return [partial(linear, inputs, weight) for weight in copies]


def packed_calls(copies: list[PackedWeight], inputs: Tensor) -> list[Callable[[], Tensor]]:
    """Return the packed product with each copy of a weight."""
    from patch.inference.backends import backend_for

    multiply = backend_for(copies[0], inputs)
    return [partial(multiply, packed, inputs) for packed in copies]


class Turns(NamedTuple):
    """A call that makes ``products`` products, each with another copy of the weight."""

    call: Callable[[], object]
    products: int


def in_turn(calls: list[Callable[[], Tensor]], device: str) -> Turns:
    """Return a call for timing: one product on the CPU, one with every copy on a GPU.

    On a GPU the call replays a CUDA graph, because launching a kernel from Python takes longer than a small product.
    """
    if device == "cpu":
        turn = cycle(calls)
        return Turns(lambda: next(turn)(), 1)
    from patch.inference.generation import captured

    def all_copies() -> None:
        for call in calls:
            call()

    return Turns(captured(all_copies), len(calls))


def random_llama(shape: Shape, dtype: Any, device: str = "cpu") -> nn.Module:
    """Return a frozen Llama of random weights, made on the device."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {name: getattr(shape, name) for name in (*names, "head_dim", "vocab_size", "tie_word_embeddings")}
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, max_position_embeddings=4096), dtype=dtype)
    return model.eval().requires_grad_(False)


def random_mask_set(model: nn.Module, sparsity: int, tile: int = TILE) -> MaskSet:
    """Return random hybrid masks of a model."""
    from patch.masks.packed import MaskSet
    from patch.models.loading import prunable_linears

    found = {name: random_masks(linear.weight, sparsity, tile) for name, linear in prunable_linears(model).items()}
    return MaskSet({n: mask for n, (mask, _) in found.items()}, "hybrid", {n: t for n, (_, t) in found.items()}, tile)


def generation_speeds(
    models: Mapping[str, nn.Module], batch: int, prompt: int, new_tokens: int, repeats: int
) -> tuple[dict[str, Measurement], dict[str, bool]]:
    """Measure the speed of each model, in turn with `dense`; noisy ones are measured again, up to twice.

    Returns:
        The speeds, and whether each model decodes by a CUDA graph.
    """
    from patch.inference.generation import Generation, random_prompt, speed_quantities
    from patch.inference.timing import measure_in_rounds

    tokens = random_prompt(models["dense"], batch, prompt)
    runs: dict[str, Generation] = {}
    for name, model in models.items():
        # All candidates share one cache: their generations do not overlap.
        cache = runs["dense"].cache if runs else None
        runs[name] = Generation(model, tokens, new_tokens, name, cache=cache)
    found = measure_in_rounds(runs, "dense", partial(speed_quantities, batch * new_tokens), repeats, rounds=3)
    return found, {name: run.in_graph for name, run in runs.items()}
