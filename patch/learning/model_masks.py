"""Learnable masks of a model: initialized, attached to its layers, regularized, and turned into final masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from patch.distributed.collectives import rank, world_size
from patch.learning.learning_settings import Learning
from patch.masks.exchange import Exchanges
from patch.masks.host_memory import HostMemory, HostSink
from patch.masks.kernels.eager import PATTERNS
from patch.masks.learnable import LearnableMask
from patch.masks.packed import MaskSet, PackedMasks
from patch.masks.row_sharding import RowSharding, WeightRows, shard_rows
from patch.masks.tile import expand_tiles, largest_within_budget, sum_tiles, tile_grid, tile_shape
from patch.models.loading import decoder_blocks, prunable_linears, weight_matrix

Masks = dict[str, Tensor]
# Rows that stay together without tiles. Their logits then fill whole vectors for any number of columns: the remainder
# at the end of a tensor may be rounded differently.
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
    weights: Mapping[str, WeightRows] | None = None,
    host_memory: HostMemory | None = None,
) -> dict[str, LearnableMask]:
    """Return one learnable mask for each prunable layer; several processes shard the pattern logits by rows.

    With ``weights`` a layer without pattern logits is sharded, too. With ``host_memory`` the gradients of the pattern
    logits are there.

    The other arguments are those of `patch.learning.learn.learn`.
    """
    device = next(model.parameters()).device
    generator, exchanges = torch.Generator().manual_seed(seed), Exchanges()
    masks = {}
    for number, (name, linear) in enumerate(prunable_linears(model).items()):
        shape = weight_matrix(linear).shape
        patterns = tiles = None
        shared = world_size() > 1 and (method != "patch-tile" or weights is not None)
        sharding = layer_sharding(shape, tile, number) if shared else None
        if method != "patch-tile":
            initial = pattern_prior[name] if pattern_prior else None
            std, strength = settings.pattern_std, settings.pattern_prior_strength
            patterns = initial_pattern_logits(shape, std, initial, strength, generator, settings.pattern_noise)
            if sharding:
                own, groups = sharding.own, shape[1] // 4
                # A copy, since a view would keep the other rows' logits in memory.
                patterns = patterns[:, own.start * groups : own.stop * groups].clone()
        if tile is not None:
            initial = tile_prior[name] if tile_prior else None
            if settings.tile_prior == "random":
                initial = torch.rand(shape, generator=generator)
            std, strength = settings.tile_std, settings.tile_prior_strength
            tiles = initial_tile_logits(shape, tile, sparsity, std, initial, strength, generator)
        fixed = frozen[name] if method == "patch-tile" else None
        sink = HostSink(host_memory) if host_memory else None
        mask = LearnableMask(shape, patterns, fixed, tiles, tile, sharding, exchanges, sink)
        masks[name] = mask.to(device)
    return masks


def layer_sharding(shape: torch.Size, tile: int | None, number: int) -> RowSharding:
    """Return the row sharding of layer ``number`` of a model over all processes; rows of a tile stay together."""
    unit = math.gcd(shape[0], VECTOR) if tile is None else tile_shape(shape, tile)[0]
    return shard_rows(shape[0], unit, world_size(), rank(), number)


def initial_pattern_logits(
    shape: torch.Size,
    std: float,
    initial: Tensor | None,
    strength: float,
    generator: torch.Generator,
    noise: Literal["add", "replace"] = "add",
) -> Tensor:
    """Return logits of the six patterns: normal noise, raised where a pattern keeps weights of the initial mask.

    Args:
        shape: `[out, in]` of the weight.
        std: standard deviation of the noise.
        initial: `[out, in]` bool, a 2:4 mask, or None.
        strength: a pattern gets `(overlap - 1) * std * strength`, overlap = kept weights in common (0 to 2).
        generator: CPU generator of the noise.
        noise: with `replace`, an initial mask of positive strength leaves no noise.

    Returns:
        `[6, out * in / 4]` fp32.
    """
    logits = torch.randn(6, shape.numel() // 4, generator=generator) * std
    if initial is not None:
        if noise == "replace" and strength > 0:
            logits.zero_()
        overlap = torch.tensor(PATTERNS, dtype=torch.float32) @ initial.reshape(-1, 4).float().T
        logits += (overlap - 1) * (std * strength)
    return logits


def initial_tile_logits(
    shape: torch.Size,
    tile: int,
    sparsity: float,
    std: float,
    initial: Tensor | None,
    strength: float,
    generator: torch.Generator,
) -> Tensor:
    """Return logits of the tiles: noise, plus `strength * std` where ``initial`` keeps most of a tile, else minus it.

    Args:
        shape: `[out, in]` of the weight.
        tile: side of a tile.
        sparsity: target; the budget of dense tiles follows from it.
        std: standard deviation of the noise.
        initial: `[out, in]` bool or scores of any kind, whose sum over a tile ranks it; None for noise alone.
        strength: shift of the logits in units of ``std``.
        generator: CPU generator of the noise.

    Returns:
        `[tiles along out, tiles along in]` fp32.
    """
    logits = torch.randn(tile_grid(shape, tile), generator=generator) * std
    if initial is not None:
        logits += torch.where(prior_tiles(initial, tile, sparsity), strength * std, -strength * std)
    return logits


def prior_tiles(initial: Tensor, tile: int, sparsity: float) -> Tensor:
    """Return the dense tiles of one layer, those where ``initial`` keeps most; see `initial_tile_logits`."""
    kept = sum_tiles(initial.float(), tile)
    dense = largest_within_budget(kept.flatten(), torch.ones(kept.numel(), dtype=torch.int64), sparsity)
    return dense.reshape(kept.shape)


@contextmanager
def attached(
    model: nn.Module, masks: Mapping[str, LearnableMask], weights: Mapping[str, WeightRows] | None = None
) -> Iterator[None]:
    """Apply its mask to every prunable weight of ``model`` within the block; other masks apply again after it.

    Args:
        model: the model.
        masks: masks of its prunable layers, with a method `linear`.
        weights: the weights of these layers if ``model`` does not have them.
    """
    linears = prunable_linears(model)
    with ExitStack() as stack:
        for name, mask in masks.items():
            linear = linears[name]
            before = vars(linear).get("forward")
            stack.callback(*((setattr, linear, "forward", before) if before else (delattr, linear, "forward")))
            # The kernels need contiguous `[out, in]` rows; for GPT-2's layers that makes a copy.
            weight = weights[name] if weights else weight_matrix(linear).contiguous()
            linear.forward = partial(mask.linear, weight=weight, bias=linear.bias)
        yield


def target_units(model: nn.Module, target: str) -> list[list[str]]:
    """Return the names of the layers that share a density target, in order: of the model, of a block, or one layer."""
    names = list(prunable_linears(model))
    if target == "global":
        return [names]
    # A name is that of the list of blocks, the number of the block, and the name within it.
    depth = decoder_blocks(model)[0].count(".") + 1
    key = (lambda name: name.split(".")[depth]) if target == "block" else str
    return [list(unit) for _, unit in groupby(names, key)]


def density_penalty(
    masks: dict[str, LearnableMask], target: float, units: list[list[str]], reduction: str
) -> tuple[Tensor, Tensor]:
    """Return the sparsity regularizer without its weight, and the density of the model.

    Args:
        masks: masks of all layers.
        target: target density.
        units: layers that share the target, as `target_units` returns them.
        reduction: `sum` of `|density - target|` over the units, or its `mean`, weighted by their sizes.
    """
    sizes = torch.tensor([float(mask.shape.numel()) for mask in masks.values()])
    densities = torch.stack([mask.density() for mask in masks.values()])
    weights = (sizes / sizes.sum()).to(densities.device, non_blocking=True)
    density = (densities * weights).sum()
    if len(units) == 1:
        return (density - target).abs(), density
    counts = [len(unit) for unit in units]
    fractions = torch.stack([part.sum() for part in weights.split(counts)])
    unit_densities = torch.stack([part.sum() for part in (densities * weights).split(counts)]) / fractions
    differences = (unit_densities - target).abs()
    return (differences if reduction == "sum" else differences * fractions).sum(), density


def kept_norm_regularizer(masks: dict[str, LearnableMask], squared_norms: Tensor, form: str) -> Tensor:
    """Return the kept-norm regularizer without its weight, from the norms of the last forward pass.

    Args:
        masks: masks of all layers.
        squared_norms: `[layers]`, squared norm of each layer's weight.
        form: `squared_ratio` is `sum ||M * W||^2 / sum ||W||^2`, `norm_ratio` is that of the norms, and `squared_sum`
            and `norm_sum` are the numerators alone.
    """
    kept, whole = torch.stack([mask.kept_norm for mask in masks.values()]), squared_norms
    if form.startswith("norm"):
        # The gradient of a root at zero is infinite; for a layer of zeros it must be zero.
        kept, whole = (values.clamp(min=torch.finfo(values.dtype).tiny).sqrt() for values in (kept, whole))
    return kept.sum() / whole.sum() if form.endswith("ratio") else kept.sum()


@torch.no_grad()
def finalize(masks: dict[str, LearnableMask], sparsity: float, settings: Learning, units: list[list[str]]) -> MaskSet:
    """Return the final masks: the likeliest pattern everywhere but in dense tiles. They are the same in all processes.

    With `finalize: exact` the tiles with the largest logits stay dense, as many as meet the budget, in each of
    ``units`` (see `target_units`). With `threshold`, the tiles with a positive logit stay dense.
    """
    logits = {name: mask.tile_logits for name, mask in masks.items()}
    return _hardened(masks, lambda name: masks[name].final_pattern(), logits, sparsity, settings, units)


@torch.no_grad()
def initial_masks(
    masks: dict[str, LearnableMask],
    sparsity: float,
    settings: Learning,
    units: list[list[str]],
    pattern_prior: Masks | None = None,
    tile_prior: Masks | None = None,
) -> MaskSet:
    """Return the final form of masks at initialization, before the first step, without the noise of their logits.

    Patterns and tiles without an initialization are those of the noise. The arguments are those of `finalize` and
    `build_masks`.
    """
    patterns_given = pattern_prior and settings.pattern_prior_strength > 0
    tiles_given = tile_prior and settings.tile_prior != "random" and settings.tile_prior_strength > 0

    def pattern(name: str) -> Tensor:
        learned = masks[name].pattern_logits is not None
        return pattern_prior[name] if learned and patterns_given else masks[name].final_pattern()

    def logits(name: str) -> Tensor | None:
        mask = masks[name]
        if mask.tile is None or not tiles_given:
            return mask.tile_logits
        return prior_tiles(tile_prior[name], mask.tile, sparsity).float() - 0.5

    return _hardened(masks, pattern, {name: logits(name) for name in masks}, sparsity, settings, units)


def _hardened(
    masks: dict[str, LearnableMask],
    pattern: Callable[[str], Tensor],
    tile_logits: dict[str, Tensor | None],
    sparsity: float,
    settings: Learning,
    units: list[list[str]],
) -> MaskSet:
    """Return masks of the 2:4 patterns of each layer and of the dense tiles that logits choose, see `finalize`."""
    tile, full, tiles = next(iter(masks.values())).tile, PackedMasks(), {}
    if tile is not None:
        logits = {name: value.detach().float().cpu() for name, value in tile_logits.items()}
        if settings.finalize == "threshold":
            tiles = {name: value > 0 for name, value in logits.items()}
        else:
            for unit in units:
                tiles |= _choose({name: logits[name] for name in unit}, masks, sparsity)
    for name, mask in masks.items():
        kept = pattern(name).cpu()
        full[name] = kept if tile is None else kept | expand_tiles(tiles[name], mask.shape)
    return MaskSet(full, "2:4" if tile is None else "hybrid", tiles, tile)


def _choose(logits: dict[str, Tensor], masks: dict[str, LearnableMask], sparsity: float) -> dict[str, Tensor]:
    """Return the dense tiles of some layers with one budget."""
    # All tiles of a layer have one size, which is smaller in layers smaller than a tile.
    counts = torch.tensor([value.numel() for value in logits.values()])
    sizes = torch.tensor([masks[name].shape.numel() for name in logits]) // counts
    flat = torch.cat([value.flatten() for value in logits.values()])
    parts = largest_within_budget(flat, sizes.repeat_interleave(counts), sparsity).split(counts.tolist())
    return {name: part.reshape(logits[name].shape) for name, part in zip(logits, parts, strict=True)}
