"""Put learnable masks on a model, read their state, and turn them into final masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from patch.distributed.collectives import rank, world_size
from patch.learning.settings import Learning
from patch.masks.learnable import LearnableMask
from patch.masks.owners import share_out
from patch.masks.packed import MaskSet
from patch.masks.prior import pattern_logits, tile_logits
from patch.masks.tile import expand_tiles, largest_within_budget, tile_shape
from patch.models.loading import prunable_linears, weight_matrix

Masks = dict[str, Tensor]
# Rows that stay together without tiles. Their logits fill whole vectors of a processor, whatever the columns: numbers
# that are left over at the end of a tensor may be rounded otherwise.
VECTOR = 8


def build_masks(
    model: nn.Module,
    method: str,
    settings: Learning,
    sparsity: float,
    tile: int | None,
    seed: int,
    pattern_prior: Masks | None = None,
    tile_prior: Masks | None = None,
    frozen: Masks | None = None,
) -> dict[str, LearnableMask]:
    """One learnable mask for each prunable layer. Several processes share out the rows of the pattern logits.

    Args:
        model: the frozen model.
        method: `maskllm`, `patch-joint` or `patch-tile`.
        settings: of the run.
        sparsity: target share of zeros.
        tile: side of a tile; None for `maskllm`.
        seed: of the initial logits.
        pattern_prior: 2:4 masks that pattern logits start from.
        tile_prior: masks at the target sparsity that rank the tiles; with the setting `random` not used.
        frozen: 2:4 masks of the sparse tiles, for `patch-tile`.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for number, (name, linear) in enumerate(prunable_linears(model).items()):
        shape = weight_matrix(linear).shape
        patterns = tiles = owners = None
        if method != "patch-tile":
            prior = pattern_prior[name] if pattern_prior else None
            patterns = pattern_logits(shape, settings.pattern_std, prior, settings.pattern_prior_strength, generator)
            if world_size() > 1:
                unit = math.gcd(shape[0], VECTOR) if tile is None else tile_shape(shape, tile)[0]
                owners = share_out(shape[0], unit, world_size(), rank(), number)
                own, groups = owners.own, shape[1] // 4
                # A copy: a view would keep the others' logits alive.
                patterns = patterns[:, own.start * groups : own.stop * groups].clone()
        if tile is not None:
            prior = tile_prior[name] if tile_prior else None
            if settings.tile_prior == "random":
                prior = torch.rand(shape, generator=generator)
            std, strength = settings.tile_std, settings.tile_prior_strength
            tiles = tile_logits(shape, tile, sparsity, std, prior, strength, generator)
        fixed = frozen[name] if method == "patch-tile" else None
        masks[name] = LearnableMask(shape, patterns, fixed, tiles, tile, owners).to(linear.weight.device)
    return masks


@contextmanager
def attached(model: nn.Module, masks: dict[str, LearnableMask]) -> Iterator[None]:
    """Within the block, every prunable weight of ``model`` is read through its mask."""
    linears = prunable_linears(model)
    with ExitStack() as stack:
        for name, mask in masks.items():
            linear = linears[name]
            # Rows of `[out, in]` must lie together; of GPT-2's layers that makes a copy.
            linear.forward = partial(mask.linear, weight=weight_matrix(linear).contiguous(), bias=linear.bias)
            stack.callback(delattr, linear, "forward")
        yield


def density_penalty(masks: dict[str, LearnableMask], target: float, per_layer: bool) -> tuple[Tensor, Tensor]:
    """`|density - target|` of the model, or its size-weighted mean over layers; and the density itself."""
    sizes = torch.tensor([float(mask.shape.numel()) for mask in masks.values()])
    densities = torch.stack([mask.density() for mask in masks.values()])
    weights = (sizes / sizes.sum()).to(densities.device)
    density = (densities * weights).sum()
    if per_layer:
        return ((densities - target).abs() * weights).sum(), density
    return (density - target).abs(), density


def weight_reward(masks: dict[str, LearnableMask], total_norm: Tensor) -> Tensor:
    """`sum ||M * W||^2 / sum ||W||^2`, from the norms that the last forward pass left behind."""
    return torch.stack([mask.kept_norm for mask in masks.values()]).sum() / total_norm


@torch.no_grad()
def finalize(masks: dict[str, LearnableMask], sparsity: float, settings: Learning) -> MaskSet:
    """Final masks: the likeliest pattern everywhere but in dense tiles. The same in all processes.

    With `finalize: exact` the tiles with the largest logits stay dense so that the budget is met to
    the tile, over the model or in each layer; with `threshold`, those with a positive logit.
    """
    first = next(iter(masks.values()))
    if first.tile is None:
        return MaskSet({name: mask.final_pattern().cpu() for name, mask in masks.items()}, "2:4")
    logits = {name: mask.tile_logits.detach().float().cpu() for name, mask in masks.items()}
    if settings.finalize == "threshold":
        tiles = {name: value > 0 for name, value in logits.items()}
    elif settings.target == "layer":
        tiles = {name: _choose({name: value}, masks, sparsity)[name] for name, value in logits.items()}
    else:
        tiles = _choose(logits, masks, sparsity)
    full = {name: mask.final_pattern().cpu() | expand_tiles(tiles[name], mask.shape) for name, mask in masks.items()}
    return MaskSet(full, "hybrid", tiles, first.tile)


def _choose(logits: dict[str, Tensor], masks: dict[str, LearnableMask], sparsity: float) -> dict[str, Tensor]:
    """The dense tiles of some layers with one budget."""
    # Tiles of a layer are equal; those of layers smaller than a tile are not.
    counts = torch.tensor([value.numel() for value in logits.values()])
    sizes = torch.tensor([masks[name].shape.numel() for name in logits]) // counts
    flat = torch.cat([value.flatten() for value in logits.values()])
    parts = largest_within_budget(flat, sizes.repeat_interleave(counts), sparsity).split(counts.tolist())
    return {name: part.reshape(logits[name].shape) for name, part in zip(logits, parts, strict=True)}
