"""Peak learning rate of mask learning that fits the number of tokens: `lr: auto`.

AdamW moves a logit by about the learning rate in each step, whatever the size of its gradient. What the gradient says
about one logit is mostly noise when a run has few tokens: over all steps its signal-to-noise ratio is

    signal = SIGNAL * (weights / 1e6) ** -SIZE * sqrt(tokens),

and a logit without signal walks at random, ``lr * sqrt(steps)`` far. If that is further than the preference that the
initial masks give to a choice, learning replaces a good mask by a random one. The rule lets the walk grow with the
signal, up to a distance that full signal justifies:

    lr = WALK * preference / sqrt(steps) * signal / sqrt(1 + signal ** 2).

With few tokens it is proportional to the square root of the tokens per step and independent of the number of steps.
`WALK` makes it the paper's rate at the paper's 2 billion tokens. `SIGNAL` and `SIZE` are fitted to the best rates of
small models (docs/results.md). patch-tile learns one logit for all weights of a tile, which has full signal: the rule
without its last factor. The rule holds for the default temperatures and scales.
"""

from __future__ import annotations

import math

from patch.learning.learning_settings import METHOD_DEFAULTS, Learning

WALK, SIGNAL, SIZE = 1.5, 7e-4, 0.15
# Factor from the rule beyond which a rate is reported.
FAR = 5.0


def with_rate(settings: Learning, method: str, weights: int) -> Learning:
    """Return the settings of a run on a model with ``weights`` prunable weights, with a number for the rate `auto`.

    `auto` is the rate of the rule; for ProxSparse, which learns weights, and MaskPro it is the published one.
    """
    return settings.model_copy(update={"lr": fitting_rate(settings, method, weights)} if settings.lr == "auto" else {})


def fitting_rate(settings: Learning, method: str, weights: int) -> float:
    """Return the rate that `auto` stands for."""
    if method in ("proxsparse", "maskpro"):
        return METHOD_DEFAULTS[method]["lr"]
    tiles_only = method == "patch-tile"
    std, strength = (
        (settings.tile_std, settings.tile_prior_strength)
        if tiles_only
        else (settings.pattern_std, settings.pattern_prior_strength)
    )
    # Without initial masks, the random initial logits stand for the preference.
    farthest = WALK * std * max(strength, 1.0) / math.sqrt(settings.steps)
    if tiles_only:
        return farthest
    tokens = settings.steps * settings.batch_size * settings.seqlen
    signal = SIGNAL * (weights / 1e6) ** -SIZE * math.sqrt(tokens)
    return farthest * signal / math.hypot(1.0, signal)


def far_rate(settings: Learning, method: str, weights: int) -> str:
    """Return a sentence about a rate of pattern logits that is far off the rule, or an empty text."""
    if settings.lr == "auto" or method not in ("maskllm", "patch-joint"):
        return ""
    fitting = fitting_rate(settings, method, weights)
    if 1 / FAR < settings.lr / fitting < FAR:
        return ""
    tokens = settings.steps * settings.batch_size * settings.seqlen
    harm = "may destroy the initial mask" if settings.lr > fitting else "may leave the initial mask as it is"
    return (
        f"the learning rate {settings.lr:g} of {method} {harm}: about {fitting:.2g} fits {tokens:,} tokens in "
        f"{settings.steps:,} steps (`lr: auto`)"
    )
