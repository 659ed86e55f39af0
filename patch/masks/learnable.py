"""Learnable masks of one linear layer: a 2:4 pattern per group of four, and dense or sparse per tile.

A group's pattern is drawn by Gumbel-softmax over six logits, a tile's state over its one logit and
zero (MaskLLM, arXiv 2409.17481; PATCH, arXiv 2509.23410). One autograd function makes the mask,
masks the weight and yields the layer's kept squared norm, so that nothing of full size is alive
between forward and backward but the six probabilities of each group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patch.masks.tile import by_tile, sum_tiles

# Which of four weights each pattern keeps, in the order of the logits.
PATTERNS = torch.tensor(
    [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]], dtype=torch.float32
)


@dataclass(frozen=True)
class Sampling:
    """How choices are drawn at one step.

    Attributes:
        scale: kappa, factor of the logits.
        temperature: tau of the Gumbel-softmax.
        hard: one-hot in the forward pass, soft gradient (straight-through).
    """

    scale: float
    temperature: float
    hard: bool = False


def uniform_noise(count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """``count`` numbers in the open interval (0, 1), fp32, a function of ``seed`` alone.

    From 32 random bits each: on a CPU four times as fast as `torch.rand`, which draws one at a time.
    """
    generator = torch.Generator(device).manual_seed(seed)
    # Without bounds `random_` never sets the sign bit of an int64.
    bits = torch.empty((count + 1) // 2, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    uniform = bits.view(torch.int32)[:count].float().mul_(2.0**-32).add_(0.5)
    return uniform.clamp_(2.0**-33, 1 - 2.0**-24)


def gumbel_noise(shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise, fp32, a function of ``seed`` and the shape alone."""
    return uniform_noise(math.prod(shape), seed, device).reshape(shape).log_().neg_().log_().neg_()


def sample_patterns(logits: Tensor, sampling: Sampling, noise: Tensor) -> Tensor:
    """Gumbel-softmax of `[6, groups]` logits over the patterns; ``noise`` is overwritten."""
    return torch.softmax(noise.add_(logits, alpha=sampling.scale).div_(sampling.temperature), dim=0)


def sample_tiles(logits: Tensor, sampling: Sampling, noise: Tensor) -> Tensor:
    """Gumbel-softmax of `[P, 0]`, first component: the share that is dense, of the logits' shape.

    The difference of two Gumbel variables is logistic, so one ``noise`` of that kind is enough.
    """
    soft = torch.sigmoid((sampling.scale * logits + noise) / sampling.temperature)
    return soft + ((soft > 0.5).to(soft.dtype) - soft).detach() if sampling.hard else soft


def logistic_noise(shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu") -> Tensor:
    """The difference of two standard Gumbel variables, fp32."""
    uniform = uniform_noise(math.prod(shape), seed, device).reshape(shape)
    return uniform.log() - (-uniform).log1p()


def _choice(probabilities: Tensor, hard: bool) -> Tensor:
    if not hard:
        return probabilities
    return torch.zeros_like(probabilities).scatter_(0, probabilities.argmax(0, keepdim=True), 1)


def _pattern(weight: Tensor, probabilities: Tensor | None, frozen: Tensor | None, hard: bool) -> Tensor:
    """The 2:4 part of the mask, `[out, in]` fp32, soft or not."""
    if probabilities is None:
        return frozen.float()
    return (PATTERNS.T.to(weight.device) @ _choice(probabilities, hard)).T.contiguous().view(weight.shape)


def _full_mask(pattern: Tensor, shares: Tensor | None, tile: int | None) -> Tensor:
    """`t + (1 - t) * pattern`, `[out, in]`."""
    if shares is None:
        return pattern
    dense = shares[:, None, :, None]
    return by_tile(pattern, tile).mul(1 - dense).add_(dense).view(pattern.shape)


class _MaskedWeight(torch.autograd.Function):
    """(weight, pattern logits or frozen mask, tile shares) -> masked weight, kept squared norm."""

    @staticmethod
    def forward(ctx, weight, logits, frozen, shares, sampling, seed, tile):  # noqa: ANN001
        probabilities = None
        if logits is not None:
            noise = gumbel_noise(tuple(logits.shape), seed, weight.device)
            probabilities = sample_patterns(logits, sampling, noise)
        mask = _full_mask(_pattern(weight, probabilities, frozen, sampling.hard), shares, tile)
        masked = weight.float() * mask
        ctx.save_for_backward(weight, probabilities, frozen, shares)
        ctx.sampling, ctx.tile = sampling, tile
        return masked.to(weight.dtype), masked.flatten().dot(masked.flatten())

    @staticmethod
    def backward(ctx, grad_masked, grad_norm):  # noqa: ANN001
        weight, probabilities, frozen, shares = ctx.saved_tensors
        pattern = _pattern(weight, probabilities, frozen, ctx.sampling.hard)
        mask = _full_mask(pattern, shares, ctx.tile)
        weight = weight.float()
        # d loss / d mask: through the masked weight, and through the norm of weight * mask.
        grad_mask = mask.mul_(weight).mul_(2 * grad_norm).add_(grad_masked).mul_(weight)
        grad_shares = grad_logits = None
        if shares is not None:
            grad_shares = sum_tiles(grad_mask * (1 - pattern), ctx.tile)
            by_tile(grad_mask, ctx.tile).mul_(1 - shares[:, None, :, None])
        if probabilities is not None:
            grad = PATTERNS.to(weight.device) @ grad_mask.view(-1, 4).T
            grad -= (grad * probabilities).sum(0)
            grad_logits = grad.mul_(probabilities).mul_(ctx.sampling.scale / ctx.sampling.temperature)
        return None, grad_logits, None, grad_shares, None, None, None


class LearnableMask(nn.Module):
    """The mask of one linear layer, as a parametrization of its weight.

    Args:
        shape: `[out, in]` of the weight.
        pattern_logits: `[6, out * in / 4]` fp32, or None for a frozen pattern. (The six of a group lie a
            row apart: sums over them then run along rows, which is what vector units are fast at.)
        frozen: `[out, in]` bool mask of the sparse tiles, where there are no pattern logits.
        tile_logits: `[out / tile, in / tile]` fp32, or None where every tile is sparse.
        tile: side of a tile.
    """

    def __init__(
        self,
        shape: torch.Size,
        pattern_logits: Tensor | None,
        frozen: Tensor | None,
        tile_logits: Tensor | None,
        tile: int | None,
    ) -> None:
        super().__init__()
        assert (pattern_logits is None) != (frozen is None)
        self.shape, self.tile = shape, tile
        self.pattern_logits = None if pattern_logits is None else nn.Parameter(pattern_logits)
        self.tile_logits = None if tile_logits is None else nn.Parameter(tile_logits)
        self.register_buffer("frozen", frozen, persistent=False)
        self.pattern_sampling = self.tile_sampling = Sampling(1.0, 1.0)
        self.seed = 0
        self.shares: Tensor | None = None
        self.kept_norm: Tensor | None = None

    def set_step(self, pattern: Sampling, tile: Sampling, seed: int) -> None:
        """Draw the tiles' states for the next forward pass; ``seed`` is this layer's for this pass."""
        self.pattern_sampling, self.tile_sampling, self.seed = pattern, tile, seed
        if self.tile_logits is not None:
            noise = logistic_noise(tuple(self.tile_logits.shape), seed ^ 0x5DEECE66D, self.tile_logits.device)
            self.shares = sample_tiles(self.tile_logits, tile, noise)

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight; leaves the kept squared norm in ``kept_norm``."""
        masked, self.kept_norm = _MaskedWeight.apply(
            weight, self.pattern_logits, self.frozen, self.shares, self.pattern_sampling, self.seed, self.tile
        )
        return masked

    def density(self) -> Tensor:
        """Expected density of the layer in this pass: `1/2 + 1/2 * mean(t)`, since a soft 2:4 group sums to two.

        Exact in fp32 on the tile grid; for 2:4 without tiles it is 1/2.
        """
        device = self.frozen.device if self.pattern_logits is None else self.pattern_logits.device
        return torch.tensor(0.5, device=device) if self.shares is None else 0.5 + 0.5 * self.shares.mean()

    @torch.no_grad()
    def final_pattern(self) -> Tensor:
        """`[out, in]` bool: the most likely pattern of each group, or the frozen mask."""
        if self.pattern_logits is None:
            return self.frozen
        return PATTERNS.to(self.pattern_logits.device)[self.pattern_logits.argmax(0)].bool().reshape(self.shape)
