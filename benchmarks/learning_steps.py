"""Learning steps that the benchmarks compare: ours, the straightforward formulation, and a dense step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

WAYS = ("dense", "joint", "joint-reference", "tile", "tile-reference")
SPARSITY = 0.45
# A step of a given number, and the bytes of all that it keeps between steps beside the model.
Step = tuple[Callable[[int], object], Callable[[], int]]


def make_step(way: str, model: nn.Module, tokens: Tensor, stack: ExitStack, tile: int, recompute: bool) -> Step:
    """Prepare a learning step.

    Args:
        way: one of ``WAYS``.
        model: frozen model, which is changed in place.
        tokens: `[1, seqlen]` int64, on the model's device.
        stack: keeps the changes of the model alive.
        tile: side of a tile.
        recompute: recompute the blocks of our joint step in the backward pass. Our tile step and the dense step always
            recompute them, the references never do.
    """
    if way == "dense":
        return _dense(model, tokens)
    mode, _, reference = way.partition("-")
    if reference:
        return _reference(mode, model, tokens, tile)
    return _ours(f"patch-{mode}", model, tokens, stack, tile, recompute or mode == "tile")


def planned_mb(way: str, shape: Any, size: int, tokens: int, recompute: bool, device: str) -> float | None:
    """Return the memory in MB that the plan of a run expects for our ways, or None for others.

    Args:
        way: one of ``WAYS``.
        shape: sizes of the model.
        size: bytes of a weight.
        tokens: number of tokens of a step.
        recompute: as in `make_step`.
        device: `cpu` or `cuda`.
    """
    from patch.pipeline.resources.memory import learning_mb

    if way not in ("joint", "tile"):
        return None
    return learning_mb(shape, f"patch-{way}", size, tokens, recompute or way == "tile", device)


def _dense(model: nn.Module, tokens: Tensor) -> Step:
    from patch.learning.objective import cross_entropy, recomputed_blocks
    from patch.models.loading import prunable_linears

    weights = [linear.weight.requires_grad_() for linear in prunable_linears(model).values()]

    def step(number: int) -> None:
        with recomputed_blocks(model, True):
            cross_entropy(model, tokens).backward()
        for weight in weights:
            weight.grad = None

    return step, lambda: 0


def _ours(method: str, model: nn.Module, tokens: Tensor, stack: ExitStack, tile: int, recompute: bool) -> Step:
    import numpy as np
    import torch

    from patch.learning.learn import step_function
    from patch.learning.learning_settings import METHOD_DEFAULTS, Learning
    from patch.learning.model_masks import attached, build_masks
    from patch.learning.objective import recomputed_blocks

    values = {"steps": 100, "batch_size": 1, "micro_batch_size": 1, "seqlen": tokens.shape[1], "tile_prior": "none"}
    values |= {"pattern_prior": "none"}
    settings = Learning(**METHOD_DEFAULTS[method] | values)
    frozen = frozen_masks(model) if method == "patch-tile" else None
    masks = build_masks(model, method, settings, SPARSITY, tile, 0, frozen=frozen)
    container = torch.nn.ModuleList(masks.values())
    optimizer = torch.optim.AdamW(container.parameters(), settings.lr, settings.betas, weight_decay=0.0, fused=True)
    sequences = np.asarray(tokens.cpu(), dtype=np.uint32)
    step = step_function(model, masks, sequences, settings, SPARSITY, 0, optimizer, None)
    stack.enter_context(attached(model, masks))
    stack.enter_context(recomputed_blocks(model, recompute))
    return (
        step,
        lambda: (
            4 * sum(p.numel() * p.element_size() for p in container.parameters())
            + sum(b.numel() for b in container.buffers())
        ),
    )


def frozen_masks(model: nn.Module) -> dict[str, Tensor]:
    """Return a 2:4 mask of every prunable layer, on the device of its weight."""
    import torch

    from patch.models.loading import prunable_linears

    group = torch.tensor([True, True, False, False])
    return {
        name: group.to(linear.weight.device).repeat(linear.weight.numel() // 4).view_as(linear.weight)
        for name, linear in prunable_linears(model).items()
    }


def _reference(mode: str, model: nn.Module, tokens: Tensor, tile: int) -> Step:
    import torch
    from torch.nn import functional as F
    from torch.nn.utils import parametrize

    from patch.models.loading import prunable_linears

    device = tokens.device
    patterns = torch.tensor(
        [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]],
        dtype=torch.float32,
        device=device,
    )
    frozen = frozen_masks(model) if mode == "tile" else None
    masks: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Mask(torch.nn.Module):
        def __init__(self, name: str, weight: torch.Tensor) -> None:
            super().__init__()
            shape = weight.shape
            if mode == "joint":
                self.logits = torch.nn.Parameter(torch.randn(weight.numel() // 4, 6, device=device) * 0.01)
            else:
                self.register_buffer("frozen", frozen[name].float())
            grid = shape[0] // tile, shape[1] // tile
            self.tiles = torch.nn.Parameter(torch.randn(grid, device=device) * 0.014)

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            if mode == "joint":
                chosen = F.gumbel_softmax(100.0 * self.logits, tau=4.0, dim=-1)
                pattern = (chosen @ patterns).view(weight.shape)
            else:
                pattern = self.frozen
            pairs = torch.stack([25.0 * self.tiles, torch.zeros_like(self.tiles)], -1)
            dense = F.gumbel_softmax(pairs, tau=2.0, dim=-1)[..., 0]
            dense = dense.repeat_interleave(tile, 0).repeat_interleave(tile, 1)
            mask = dense + (1 - dense) * pattern
            masks.append((mask, weight))
            return (mask * weight).to(weight.dtype)

    parameters = []
    for name, linear in prunable_linears(model).items():
        mask = Mask(name, linear.weight)
        parameters += list(mask.parameters())
        parametrize.register_parametrization(linear, "weight", mask)
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.0, fused=True)

    def step(number: int) -> None:
        masks.clear()
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        size = sum(mask.numel() for mask, _ in masks)
        density = sum(mask.sum() for mask, _ in masks) / size
        norm = sum((weight.float() ** 2).sum() for _, weight in masks)
        kept_norm = sum(((mask * weight) ** 2).sum() for mask, weight in masks) / norm
        (loss + 7 * (density - (1 - SPARSITY)).abs() - 10 * kept_norm).backward()
        optimizer.step()

    return step, lambda: 4 * sum(p.numel() * p.element_size() for p in parameters)
