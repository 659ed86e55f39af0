"""ProxSparse: 2:4 masks learned by fine-tuning with a proximal operator."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from patch.distributed.collectives import broadcast_rows, rank, sum_over_processes, world_size
from patch.learning.held_out import HeldOut, held_out_sequences
from patch.learning.learning_rate import with_rate
from patch.learning.learning_settings import Learning
from patch.learning.loop import StepFunction, run_steps
from patch.learning.objective import add_gradients, recomputed_blocks
from patch.learning.progress import peak_memory_mb
from patch.learning.schedules import batch_indices, linear_rate
from patch.learning.trackers import UNTRACKED, Tracking
from patch.learning.trainable_copy import TrainableCopy, own_part, row_bounds, trainable_copy
from patch.masks.nm import NM, nm_mask
from patch.masks.packed import MaskSet, PackedMasks
from patch.masks.proximal import shrink_two_four_
from patch.models.loading import prunable_linears, weight_matrix

PATTERN = NM(2, 4)
# Default of the trainer that the published code uses.
GRADIENT_NORM = 1.0


def proxsparse(
    model: nn.Module,
    sequences: np.ndarray,
    settings: Learning,
    seed: int = 0,
    folder: Path | str = "checkpoints",
    curve: Path | str = "curve.jsonl",
    upstream: str = "",
    tracking: Tracking = UNTRACKED,
) -> MaskSet:
    """Fine-tune a copy of a model, shrinking each group of four towards two weights, and return the masks.

    All parameters are trained, in fp32 and without dropout. After each optimizer step the blocks' linear layers
    go through the proximal operator, whose strength does not follow the learning rate. Only the masks are kept.

    With several processes (`torch.distributed` is initialised) each holds a shard of the weights, gradients and moments
    (`patch.learning.trainable_copy`). The processes divide the micro-batches of a step, as far as they can be divided
    evenly; the others repeat the same micro-batches. All have the same arguments and get the same masks, which are
    those of one process, bit for bit if each dividing process computes one micro-batch and at most two divide.

    Args:
        model: causal language model; afterwards it has its own weights, frozen and in evaluation mode. During the run
            they are in host memory, and their fp32 copy in their place.
        sequences: `[count, seqlen]` token ids, of which `held_out_sequences` are not learned on.
        settings: settings of the run.
        seed: seed of the order of the data.
        folder: folder of the checkpoints, from which a stopped run resumes. Remove it when the masks are saved.
        curve: file of the training curve, in JSON lines.
        upstream: digest of the model and sequences; a checkpoint of others is not resumed.
        tracking: experiment trackers that the curve is also reported to.

    Returns:
        2:4 masks of the two largest of each fine-tuned group; among equals the later stays. With `keep: best`, those of
        the measurement with the lowest held-out loss; `header` has the losses, see `patch.learning.held_out`.

    Raises:
        InputError: a loss is not finite, the text is too short to keep the best masks, or a layer has no groups of
            four.

    Source: ProxSparse (arXiv 2502.00258); its code trains in bf16.
    """
    settings = with_rate(settings, "proxsparse", 0)
    identity = f"proxsparse {seed} {upstream} {settings.model_dump_json()}"
    with trainable_copy(model) as trained, recomputed_blocks(trained.model, settings.gradient_checkpointing):
        # The fused implementation needs no memory beside its moments.
        optimizer = torch.optim.AdamW(
            trained.shards.values(), settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        current = partial(_final_masks, trained.model)
        held_out = HeldOut(
            settings, held_out_sequences(sequences, settings, seed), trained.original, initial=current, current=current
        )
        run_steps(
            settings.steps,
            held_out.measured(_step_function(trained, sequences, settings, seed, optimizer)),
            {"model": trained, "optimizer": optimizer, "held_out": held_out},
            Path(folder),
            identity,
            Path(curve),
            settings.checkpoint_minutes,
            settings.log_every,
            name="proxsparse",
            tracking=tracking,
            shards=trained.ranges,
            note=held_out.progress,
        )
        trained.zero_grad()
        return held_out.finished()


def _step_function(
    trained: TrainableCopy, sequences: np.ndarray, settings: Learning, seed: int, optimizer: torch.optim.Optimizer
) -> StepFunction:
    model, linears = trained.model, list(prunable_linears(trained.model).values())
    device = next(model.parameters()).device
    held_out = settings.held_out_count(len(sequences))
    micro_batches, dividing = len(settings.micro_batches()), settings.dividing_processes(world_size())
    mine = settings.micro_batches(rank() % dividing, dividing)
    # A process that repeats the micro-batches of another adds nothing to the gradient.
    factor = 1.0 if rank() < dividing else 0.0

    def step_fn(step: int, may_stop: Callable[[], None] = lambda: None) -> dict[str, float | None]:
        started = time.monotonic()
        rate = settings.lr * linear_rate(step, settings.steps, settings.warmup_steps)
        optimizer.param_groups[0]["lr"] = rate
        trained.zero_grad()
        rows = batch_indices(step, settings.batch_size, len(sequences), seed, held_out).reshape(micro_batches, -1)
        total = add_gradients(model, (sequences[rows[index]] for index in mine), micro_batches, may_stop, factor)
        sum_over_processes([total])
        trained.clip_gradients(GRADIENT_NORM)
        optimizer.step()
        # The host waits for a GPU once to read all numbers.
        loss, penalty, sparse_groups = torch.stack([total, *_shrink(linears, settings.prox_strength)]).tolist()
        return {
            "loss": loss,
            "penalty": penalty,
            "sparse_groups": sparse_groups,
            "lr": rate,
            "tokens_per_second": round(rows.size * sequences.shape[1] / (time.monotonic() - started)),
            "peak_memory_mb": peak_memory_mb(device),
        }

    return step_fn


@torch.no_grad()
def _shrink(linears: list[nn.Module], strength: float) -> tuple[Tensor, Tensor]:
    """Apply the proximal operator; return the regularizer's mean over groups and the fraction of 2:4 groups.

    Both are fp64 on the device of the layers.
    """
    penalties, sparse, groups = [], [], 0
    for linear in linears:
        matrix = own_part(weight_matrix(linear))
        penalty, count = shrink_two_four_(matrix, strength)
        penalties.append(penalty)
        sparse.append(count)
        groups += linear.weight.numel() // 4
    penalty, count = torch.stack(penalties), torch.stack(sparse)
    sum_over_processes([penalty, count])
    return penalty.sum() / groups, (count.sum() / groups).double()


def _final_masks(model: nn.Module) -> MaskSet:
    masks = PackedMasks()
    for name, linear in prunable_linears(model).items():
        masks[name] = _final_mask(linear).cpu()
    return MaskSet(masks, str(PATTERN))


@torch.no_grad()
def _final_mask(linear: nn.Module) -> Tensor:
    """Return the mask of the two largest weights of each group: `[out, in]` bool, the same in all processes."""
    matrix = weight_matrix(linear)
    own, bounds = nm_mask(own_part(matrix).abs(), PATTERN), row_bounds(len(matrix))
    if world_size() == 1:
        return own
    mask = own.new_empty(matrix.shape)
    mask[bounds[rank()] : bounds[rank() + 1]] = own
    broadcast_rows(mask, bounds)
    return mask
