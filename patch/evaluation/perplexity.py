"""Perplexity over token sequences."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patch.errors import InputError
from patch.evaluation.bootstrap import bootstrap_stderr
from patch.evaluation.metric import Measurement, check_loss

# Logits converted to fp32 at a time, 64 MiB: a sequence times a vocabulary of 256k would take gigabytes.
_CHUNK_LOGITS = 1 << 24


@torch.inference_mode()
def perplexity(model: nn.Module, sequences: np.ndarray, batch_size: int) -> Measurement:
    """Return the perplexity: `exp` of the mean fp32 cross-entropy of every predicted token.

    Args:
        model: causal language model; `model(tokens).logits` is `[batch, seqlen, vocab]`.
        sequences: `[count, seqlen]` token ids; each predicts its `seqlen - 1` later tokens.
        batch_size: sequences per forward pass; it changes the value only by rounding.

    Returns:
        Perplexity with a bootstrap standard error over the sequences, whose mean losses are the ``values``.

    Raises:
        InputError: the sequences have no tokens to predict, or the mean loss is not finite or too large.
    """
    count, seqlen = sequences.shape
    if not count or seqlen < 2:
        raise InputError(
            f"perplexity: {count} sequences of {seqlen} tokens predict nothing; use seqlen >= 2 and more text"
        )
    device = next(model.parameters()).device
    sums = []
    for start in range(0, count, batch_size):
        batch = torch.from_numpy(sequences[start : start + batch_size].astype(np.int64))
        tokens = batch.to(device, non_blocking=True)
        logits = model(tokens, use_cache=False).logits
        sums += [_loss_sum(rows[:-1], targets[1:]) for rows, targets in zip(logits, tokens, strict=True)]
    # The host waits for a GPU once to read all sums.
    means = torch.stack(sums).cpu().numpy() / (seqlen - 1)
    check_loss(float(means.mean()))
    stderr = bootstrap_stderr(means, np.exp)
    return Measurement(value=math.exp(means.mean()), stderr=stderr, samples=count, values=tuple(means.tolist()))


def _loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of `[n, vocab]` logits, summed in fp64 over chunks of tokens."""
    chunk = max(1, _CHUNK_LOGITS // logits.shape[-1])
    losses = [
        F.cross_entropy(rows.float(), wanted, reduction="none").sum(dtype=torch.float64)
        for rows, wanted in zip(logits.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.stack(losses).sum()
