"""Held-out loss of a learning run: the loss of the final form of its mask on sequences that it does not learn on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patch.distributed.collectives import is_first, rank, sum_over_processes, world_size
from patch.errors import InputError
from patch.evaluation.metric import HeldOutLoss
from patch.learning.document_masking import DocumentMasking
from patch.learning.learning_settings import Learning
from patch.learning.loop import StepFunction
from patch.learning.model_masks import attached
from patch.learning.objective import cross_entropy, frozen_output_layer, token_ids
from patch.learning.schedules import held_out_rows
from patch.masks.kernels.eager import pack_bits, unpack_bits
from patch.masks.packed import MaskSet, PackedMasks
from patch.masks.row_sharding import Weight, WeightRows

log = logging.getLogger(__name__)

# Tokens of a batch, if a micro-batch has fewer: without gradients no activations are kept.
TOKENS = 1024


class FixedMask:
    """Mask of one linear layer, kept as one bit a weight, which is applied in each forward pass.

    With `WeightRows` it is the mask of this process' rows. All processes then need the layer at the same time.
    """

    def __init__(self, mask: Tensor) -> None:
        self.bits = pack_bits(mask)

    def linear(self, inputs: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        """Return `inputs @ (mask * weight).T + bias`."""
        held = weight.own if isinstance(weight, WeightRows) else weight
        kept = unpack_bits(self.bits, 0, held.numel()).view(held.shape)
        masked = held.masked_fill(~kept, 0)
        if isinstance(weight, WeightRows):
            masked = WeightRows(masked, weight.sharding).gathered()
        return F.linear(inputs, masked, bias)


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    masks: MaskSet,
    sequences: np.ndarray,
    batch_size: int,
    masking: DocumentMasking | None = None,
    weights: Mapping[str, WeightRows] | None = None,
) -> float:
    """Return the mean cross-entropy of a model with ``masks`` on `[count, seqlen]` ids; its weights do not change.

    Several processes divide the batches and get the same value, that of one process. ``weights`` are those of the
    prunable layers if ``model`` does not have them.
    """
    device = next(model.parameters()).device
    batches = np.split(sequences, range(batch_size, len(sequences), batch_size))
    sums = torch.zeros(len(batches), dtype=torch.float64, device=device)
    fixed = {}
    for name, mask in masks.masks.items():
        own = weights[name].sharding.own if weights else range(len(mask))
        fixed[name] = FixedMask(mask[own.start : own.stop].to(device))
    with attached(model, fixed, weights):
        # All processes examine the model here: under sharded masks, one that did it alone later would wait for others.
        frozen_output_layer(model, token_ids(sequences[:1], device))
        for first in range(0, len(batches), world_size()):
            # A process without a batch repeats the last: the others may need its rows of the weights.
            index = min(first + rank(), len(batches) - 1)
            tokens = token_ids(batches[index], device)
            loss = cross_entropy(model, tokens, masking)
            if index == first + rank():
                sums[index] = len(tokens) * loss.double()
    sum_over_processes([sums])
    return sums.sum().item() / len(sequences)


@dataclass
class HeldOut:
    """Measurements of a run's held-out loss, and with `keep: best` the best mask; part of the run's checkpoints.

    Attributes:
        settings: settings of the run.
        sequences: `[count, seqlen]` ids that are not learned on; without any, nothing is measured.
        model: returns a context manager that yields the model with its original weights.
        initial: returns the final form of the mask before the first step.
        current: returns the final form of the mask now. Both are called by all processes.
        masking: the documents of the sequences, for `cut_attention`.
        weights: weights of the prunable layers if the model does not have them.
    """

    settings: Learning
    sequences: np.ndarray
    model: Callable[[], AbstractContextManager[nn.Module]]
    initial: Callable[[], MaskSet]
    current: Callable[[], MaskSet]
    masking: DocumentMasking | None = None
    weights: Mapping[str, WeightRows] | None = None
    _losses: dict[str, float | int] = field(default_factory=dict)
    _best: MaskSet | None = None

    def __post_init__(self) -> None:
        if not self.settings.held_out_sequences or len(self.sequences):
            return
        if self.settings.keep == "best":
            raise InputError(
                "`keep` is 'best', but none of the text's fewer than 10 sequences is held out to choose by; give more "
                "text, or make `keep` last"
            )
        if is_first():
            log.warning("no held-out loss is measured: the text has fewer than 10 sequences, all of which are needed")

    def measured(self, step_fn: StepFunction) -> StepFunction:
        """Return ``step_fn`` with measurements of the initial mask before step 0 and of the mask after some steps."""
        if not len(self.sequences):
            return step_fn
        due = self.settings.measured_steps()

        def measured_step(step: int, may_stop: Callable[[], None] = lambda: None) -> dict[str, float | None]:
            found = {} if step else {"initial_held_out_loss": self._measure(self.initial(), 0)}
            values = step_fn(step, may_stop)
            if step in due:
                found["held_out_loss"] = self._measure(self.current(), step + 1)
            return values | found

        return measured_step

    def _measure(self, masks: MaskSet, step: int) -> float:
        """Measure the masks before ``step``, and keep them if they are the best."""
        batch_size = max(self.settings.micro_batch_size, TOKENS // self.sequences.shape[1])
        with self.model() as model:
            loss = held_out_loss(model, masks, self.sequences, batch_size, self.masking, self.weights)
        if not math.isfinite(loss):
            raise InputError(f"the held-out loss of the mask before step {step} is {loss}; lower the learning rate")
        if step == 0:
            self._losses = {"initial": loss}
        self._losses["final"] = loss
        if step == 0 or loss < self._losses["best"]:
            self._losses |= {"best": loss, "best_step": step}
            if self.settings.keep == "best":
                self._best = masks
        return loss

    def progress(self) -> str:
        """Return the newest loss beside the initial one, for the progress line; empty without measurements."""
        if not self._losses:
            return ""
        return f"held-out loss {self._losses['final']:.3f} (initial {self._losses['initial']:.3f})"

    def finished(self) -> MaskSet:
        """Return the masks that the run keeps, with the losses in their header; warn if they are worse than before."""
        masks = self._best or self.current()
        if self._losses:
            found = HeldOutLoss(**self._losses, kept=self.settings.keep, sequences=len(self.sequences))
            masks.header = {"held_out": found.model_dump()}
            if found.warning and is_first():
                log.warning("%s", found.warning)
        return masks

    def state_dict(self) -> dict[str, Any]:
        """Return the losses and the best mask."""
        best = self._best
        tensors = {} if best is None else {"masks": best.masks.state_dict(), "tiles": best.tiles}
        kind = {} if best is None else {"pattern": best.pattern, "tile": best.tile}
        return {"losses": self._losses, "best": tensors | kind}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace losses and mask by those of a state."""
        self._losses, best = state["losses"], state["best"]
        if best:
            masks = PackedMasks()
            masks.load_state_dict(best["masks"])
            self._best = MaskSet(masks, best["pattern"], best["tiles"], best["tile"])


def held_out_sequences(sequences: np.ndarray, settings: Learning, seed: int) -> np.ndarray:
    """Return the held-out sequences of a run in the order of the text: `[count, seqlen]` ids."""
    count = settings.held_out_count(len(sequences))
    return sequences[np.sort(held_out_rows(len(sequences), seed, count))]
