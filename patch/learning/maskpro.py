"""MaskPro: 2:4 masks learned by policy gradients, which need forward passes alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patch.distributed.collectives import rank, sum_over_processes, world_size
from patch.learning.held_out import FixedMask, HeldOut, held_out_sequences
from patch.learning.learning_rate import with_rate
from patch.learning.learning_settings import Learning
from patch.learning.loop import StepFunction, run_steps
from patch.learning.model_masks import Masks, attached
from patch.learning.objective import cross_entropy, token_ids
from patch.learning.progress import peak_memory_mb
from patch.learning.schedules import batch_indices
from patch.learning.trackers import UNTRACKED, Tracking
from patch.masks.kernels.eager import unpack_bits
from patch.masks.nm import NM, nm_mask
from patch.masks.noise import gumbel_noise, noise_keys, places
from patch.masks.packed import MaskSet, PackedMasks
from patch.models.loading import prunable_linears

PATTERN = NM(2, 4)
# Smallest probability that is divided by, as in the published code.
_TINY = 1e-8
# Groups that are updated at once, which bounds the memory.
_PART = 1 << 18


def maskpro(
    model: nn.Module,
    sequences: np.ndarray,
    settings: Learning,
    initial: Masks,
    seed: int = 0,
    folder: Path | str = "checkpoints",
    curve: Path | str = "curve.jsonl",
    upstream: str = "",
    tracking: Tracking = UNTRACKED,
) -> MaskSet:
    """Learn one logit for each weight of a frozen model by policy gradients, and return the masks.

    A step samples the two kept weights of each group without replacement, with probabilities from the softmax of the
    group's logits. Its reward is the loss of the initial mask on the same sequences minus the loss of the sampled mask,
    relative to a moving average.

    With several processes (`torch.distributed` is initialised) each computes its part of every batch and has all
    logits. All have the same arguments and get the same masks, those of one process.

    Args:
        model: causal language model; it is unchanged afterwards.
        sequences: `[count, seqlen]` token ids, of which `held_out_sequences` are not learned on.
        settings: settings of the run.
        initial: layer name -> `[out, in]` bool, the 2:4 masks that learning starts from.
        seed: seed of the samples and of the order of the data.
        folder: folder of the checkpoints, from which a stopped run resumes. Remove it when the masks are saved.
        curve: file of the training curve, in JSON lines.
        upstream: digest of the model, sequences and masks; a checkpoint of others is not resumed.
        tracking: experiment trackers that the curve is also reported to.

    Returns:
        The two largest logits of each group; among equals the later stays. With `keep: best`, those of the measurement
        with the lowest held-out loss; `header` has the losses, see `patch.learning.held_out`.

    Raises:
        InputError: a loss is not finite, the text is too short to keep the best masks, or the processes cannot divide a
            batch evenly.

    Source: MaskPro (arXiv 2506.12876) and its code.
    """
    settings = with_rate(settings, "maskpro", 0)
    device = next(model.parameters()).device
    policy = Policy({name: initial[name].to(device) for name in prunable_linears(model)}, settings, seed)
    start = {name: FixedMask(initial[name].to(device)) for name in policy.logits}
    held_out = HeldOut(
        settings,
        held_out_sequences(sequences, settings, seed),
        model=lambda: nullcontext(model),
        initial=lambda: _mask_set(initial),
        current=lambda: _mask_set({name: nm_mask(logits, PATTERN) for name, logits in policy.logits.items()}),
    )
    run_steps(
        settings.steps,
        held_out.measured(_step_function(model, policy, start, sequences, settings, seed)),
        {"policy": policy, "held_out": held_out},
        Path(folder),
        f"maskpro {seed} {upstream} {settings.model_dump_json()}",
        Path(curve),
        settings.checkpoint_minutes,
        settings.log_every,
        name="maskpro",
        tracking=tracking,
        note=held_out.progress,
    )
    return held_out.finished()


class Policy:
    """Distribution of the masks of a model, and the moving average of its loss residuals.

    Attributes:
        logits: layer name -> `[out, in]` fp32.
        tracker: moving average of the residuals, fp64.
    """

    def __init__(self, initial: Masks, settings: Learning, seed: int) -> None:
        self.logits = {name: mask * settings.initial_logit for name, mask in initial.items()}
        self.tracker = torch.zeros((), dtype=torch.float64)
        self._rate, self._decay, self._seed = settings.lr, settings.tracker_decay, seed

    def sample(self, step: int) -> dict[str, FixedMask]:
        """Return masks of the two weights of each group with the largest sums of logit and Gumbel noise.

        This is sampling without replacement from the softmax of the logits.
        """
        masks = {}
        for number, (name, logits) in enumerate(self.logits.items()):
            noise = gumbel_noise(places(logits.numel(), device=logits.device), noise_keys(self._seed, step, number))
            masks[name] = FixedMask(nm_mask(noise.view_as(logits).add_(logits), PATTERN))
        return masks

    def update(self, masks: dict[str, FixedMask], residual: float) -> None:
        """Change the logits by the policy gradient of sampled ``masks``, whose loss exceeds the initial mask's."""
        self.tracker.mul_(self._decay).add_((1 - self._decay) * residual)
        change = -self._rate * (residual - self.tracker.item())
        for name, logits in self.logits.items():
            kept = unpack_bits(masks[name].bits, 0, logits.numel()).view(-1, PATTERN.m)
            for part, chosen in zip(logits.view(-1, PATTERN.m).split(_PART), kept.split(_PART), strict=True):
                part.add_(log_probability_gradient(part, chosen), alpha=change)

    def state_dict(self) -> dict[str, Any]:
        """Return the logits and the moving average."""
        return {"logits": self.logits, "tracker": self.tracker}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy the values of a state."""
        self.tracker.copy_(state["tracker"])
        for name, logits in self.logits.items():
            logits.copy_(state["logits"][name])


def log_probability_gradient(logits: Tensor, kept: Tensor) -> Tensor:
    """Return the gradient of the log-probabilities that two weights of each group are sampled, in either order.

    With `p = softmax(logits)` and `q = 1 - p`, the probability of i and j is `p_i p_j (1 / q_i + 1 / q_j)`. Its
    logarithm has the derivative `a_k - p_k (a_i + a_j)` by logit k, where `a_i = 1 + p_i q_j / (q_i (q_i + q_j))`, and
    a is zero for the others.

    Args:
        logits: `[groups, m]`.
        kept: `[groups, m]` bool, two in each group.

    Returns:
        `[groups, m]` fp64.
    """
    # In fp64, since one minus a probability near one has few digits.
    probability = logits.softmax(1, dtype=torch.float64)
    others = (1 - probability).clamp_(min=_TINY)
    both = others.masked_fill(~kept, 0).sum(1, keepdim=True)
    part = (1 + probability * (both - others) / (others * both)).masked_fill_(~kept, 0)
    return part.sub_(probability.mul_(part.sum(1, keepdim=True)))


def _step_function(
    model: nn.Module,
    policy: Policy,
    start: dict[str, FixedMask],
    sequences: np.ndarray,
    settings: Learning,
    seed: int,
) -> StepFunction:
    device = next(model.parameters()).device
    micro_batches, mine = len(settings.micro_batches()), settings.micro_batches(rank(), world_size())
    held_out = settings.held_out_count(len(sequences))

    @torch.no_grad()
    def step_fn(step: int, may_stop: Callable[[], None] = lambda: None) -> dict[str, float | None]:
        started = time.monotonic()
        rows = batch_indices(step, settings.batch_size, len(sequences), seed, held_out).reshape(micro_batches, -1)
        sampled = policy.sample(step)
        # Each process fills the places of its micro-batches, so that the sum does not depend on their number.
        losses = torch.zeros(2, micro_batches, dtype=torch.float64, device=device)
        for place, masks in enumerate((sampled, start)):
            with attached(model, masks):
                for index in mine:
                    may_stop()
                    losses[place, index] = cross_entropy(model, token_ids(sequences[rows[index]], device))
        sum_over_processes([losses])
        loss, initial_loss = losses.mean(1).tolist()
        policy.update(sampled, loss - initial_loss)
        return {
            "loss": loss,
            "residual": loss - initial_loss,
            "tracker": policy.tracker.item(),
            "lr": settings.lr,
            "tokens_per_second": round(rows.size * sequences.shape[1] / (time.monotonic() - started)),
            "peak_memory_mb": peak_memory_mb(device),
        }

    return step_fn


def _mask_set(masks: Masks) -> MaskSet:
    packed = PackedMasks()
    for name, mask in masks.items():
        packed[name] = mask.cpu()
    return MaskSet(packed, str(PATTERN))
