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
small models (docs/results.md). It holds for the default temperatures and scales.
"""

from __future__ import annotations

import math

from patch.learning.learning_settings import METHOD_DEFAULTS, Learning

# Methods with 2:4 logits, which the rule is for.
RULED = ("maskllm", "patch-joint")
WALK, SIGNAL, SIZE = 1.5, 7e-4, 0.15
# Factor from the rule beyond which a rate is reported.
FAR = 5.0


def with_rate(settings: Learning, method: str, weights: int) -> Learning:
    """Return the settings of a run on a model with ``weights`` prunable weights, with a number for the rate `auto`.

    `auto` is the rate of the rule for pattern logits, and the published one for other methods.
    """
    if settings.lr != "auto":
        return settings
    rate = fitting_rate(settings, weights) if method in RULED else METHOD_DEFAULTS[method]["lr"]
    return settings.model_copy(update={"lr": rate})


def fitting_rate(settings: Learning, weights: int) -> float:
    """Return the rate of the rule above."""
    tokens_per_step = settings.batch_size * settings.seqlen
    signal = SIGNAL * (weights / 1e6) ** -SIZE * math.sqrt(settings.steps * tokens_per_step)
    # Without initial masks, the random initial logits stand for the preference.
    preference = settings.pattern_std * max(settings.pattern_prior_strength, 1.0)
    return WALK * preference / math.sqrt(settings.steps) * signal / math.hypot(1.0, signal)


def far_rate(method: str, settings: Learning, weights: int) -> str:
    """Return a sentence about a learning rate far off the rule, or an empty text."""
    rate, fitting = with_rate(settings, method, weights).lr, fitting_rate(settings, weights)
    if method not in RULED or 1 / FAR < rate / fitting < FAR:
        return ""
    tokens = settings.steps * settings.batch_size * settings.seqlen
    harm = "may destroy the initial mask" if rate > fitting else "may leave the initial mask as it is"
    return (
        f"the learning rate {rate:g} of {method} {harm}: about {fitting:.2g} fits {tokens:,} tokens in "
        f"{settings.steps:,} steps (`lr: auto`)"
    )
