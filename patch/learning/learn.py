"""Mask learning: maskllm, patch-joint and patch-tile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from patch.data.tokenization import Separator
from patch.distributed.collectives import rank, world_size
from patch.learning.document_masking import DocumentMasking
from patch.learning.gradient_clipping import clip_gradients
from patch.learning.held_out import HeldOut, held_out_sequences
from patch.learning.learning_rate import with_rate
from patch.learning.learning_settings import Learning
from patch.learning.loop import StepFunction, run_steps
from patch.learning.model_masks import (
    Masks,
    attached,
    build_masks,
    density_penalty,
    finalize,
    initial_masks,
    kept_norm_regularizer,
    target_units,
)
from patch.learning.objective import cross_entropy, recomputed_blocks, token_ids
from patch.learning.offloaded_adamw import OffloadedAdamW
from patch.learning.ordered_sums import OrderedGradients, sum_in_order
from patch.learning.progress import peak_memory_mb
from patch.learning.schedules import batch_indices, cosine_rate, ramp
from patch.learning.sharded_state import logit_shards
from patch.learning.trackers import UNTRACKED, Tracking
from patch.masks.host_memory import HostMemory
from patch.masks.learnable import LearnableMask, Sampling, begin_pass
from patch.masks.packed import MaskSet
from patch.masks.row_sharding import WeightRows
from patch.models.loading import prunable_linears, weight_matrix

# Terms of a step in the training curve.
TERMS = ("loss", "cross_entropy", "sparsity_term", "weight_term", "density", "kept_norm")


def learn(
    model: nn.Module,
    method: str,
    sequences: np.ndarray,
    settings: Learning,
    sparsity: float = 0.5,
    tile: int | None = None,
    seed: int = 0,
    pattern_prior: Masks | None = None,
    tile_prior: Masks | None = None,
    frozen: Masks | None = None,
    folder: Path | str = "checkpoints",
    curve: Path | str = "curve.jsonl",
    upstream: str = "",
    tracking: Tracking = UNTRACKED,
    separator: Separator | None = None,
    weights: Mapping[str, WeightRows] | None = None,
    offload: bool = False,
) -> MaskSet:
    """Learn the masks of a frozen model.

    With several processes (`torch.distributed` is initialised) each computes its part of a batch and holds its shard
    of the pattern logits, their gradients and moments. All have the same arguments and get the same masks, which are
    those of one process.

    Args:
        model: causal language model; it is unchanged afterwards.
        method: `maskllm` (2:4 everywhere), `patch-joint` (2:4 patterns and dense tiles), `patch-tile`
            (dense tiles over the ``frozen`` 2:4 masks).
        sequences: `[count, seqlen]` token ids, of which `held_out_sequences` are not learned on.
        settings: settings of the run.
        sparsity: target fraction of zeros, 0 to 0.5; 0.5 for `maskllm`.
        tile: side of a tile, which divides every layer; None for `maskllm`.
        seed: seed of the initial logits, the noise and the order of the data.
        pattern_prior: layer name -> `[out, in]` bool, 2:4 masks that initialize the pattern logits.
        tile_prior: masks at the target sparsity that rank the tiles; not used with the setting `random`.
        frozen: 2:4 masks of the sparse tiles, for `patch-tile`.
        folder: folder of the checkpoints, from which a stopped run resumes. Remove it when the masks are saved.
        curve: file of the training curve, in JSON lines.
        upstream: digest of the model, sequences and masks; a checkpoint of others is not resumed.
        tracking: experiment trackers that the curve is also reported to.
        separator: the tokens that separate the documents of a sequence, for `cut_attention`.
        weights: this process' rows of the prunable weights, if ``model`` is without them, as `load_sharded` returns
            both.
        offload: True to keep the gradients and moments of the pattern logits in the host's memory. The masks are the
            same.

    Returns:
        The final masks, or those with the lowest held-out loss if `keep` is `best`; `header` has the losses, see
        `patch.learning.held_out`.

    Raises:
        InputError: a loss is not finite, the text is too short to keep the best masks, the processes cannot divide a
            batch evenly, or the model does not support `cut_attention`.

    Source: MaskLLM (arXiv 2409.17481), PATCH (arXiv 2509.23410).
    """
    size = sum(weight_matrix(linear).numel() for linear in prunable_linears(model).values())
    settings = with_rate(settings, method, size)
    masking = DocumentMasking(model, separator) if settings.cut_attention else None
    memory = HostMemory(next(model.parameters()).device) if offload else None
    start = (pattern_prior, tile_prior, frozen, weights, memory)
    masks = build_masks(model, method, settings, sparsity, tile, seed, *start)
    container = nn.ModuleList(masks.values())
    shards = logit_shards(container)
    optimizer = _optimizer(container, settings, memory)
    step_fn = step_function(model, masks, sequences, settings, sparsity, seed, optimizer, masking, weights)
    target = (masks, sparsity, settings, target_units(model, settings.target))
    held_out = HeldOut(
        settings,
        held_out_sequences(sequences, settings, seed),
        model=lambda: nullcontext(model),
        initial=lambda: initial_masks(*target, pattern_prior, tile_prior),
        current=lambda: finalize(*target),
        masking=masking,
        weights=weights,
    )
    identity = f"{method} {sparsity} {tile} {seed} {upstream} {settings.model_dump_json()}"
    with attached(model, masks, weights), recomputed_blocks(model, settings.gradient_checkpointing):
        run_steps(
            settings.steps,
            held_out.measured(step_fn),
            {"masks": container, "optimizer": optimizer, "held_out": held_out},
            Path(folder),
            identity,
            Path(curve),
            settings.checkpoint_minutes,
            settings.log_every,
            name=method,
            tracking=tracking,
            shards=shards,
            note=held_out.progress,
        )
    return held_out.finished()


def _optimizer(masks: nn.ModuleList, settings: Learning, memory: HostMemory | None) -> torch.optim.Optimizer:
    options = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if memory:
        return OffloadedAdamW(masks, memory, **options)
    # The fused implementation needs no memory beside its moments.
    return torch.optim.AdamW(masks.parameters(), fused=True, **options)


def step_function(
    model: nn.Module,
    masks: dict[str, LearnableMask],
    sequences: np.ndarray,
    settings: Learning,
    sparsity: float,
    seed: int,
    optimizer: torch.optim.Optimizer,
    masking: DocumentMasking | None,
    weights: Mapping[str, WeightRows] | None = None,
) -> StepFunction:
    """Return the function of one optimizer step, see `patch.learning.loop.run_steps`."""
    device = next(model.parameters()).device
    whole = (weights[n].gathered() if weights else weight_matrix(m) for n, m in prunable_linears(model).items())
    squared_norms = torch.stack([weight.float().square().sum() for weight in whole])
    units = target_units(model, settings.target)
    micro_batches, mine = len(settings.micro_batches()), settings.micro_batches(rank(), world_size())
    held_out = settings.held_out_count(len(sequences))
    hybrid = next(iter(masks.values())).tile is not None
    sharded = next(iter(masks.values())).sharding is not None
    tile_logits = [mask.tile_logits for mask in masks.values() if mask.tile_logits is not None]

    def micro_step(step: int, index: int, rows: np.ndarray) -> Tensor:
        """Add the gradients of a micro-batch, and return its part of the step's `TERMS`."""
        pattern, tiles = _sampling(settings, step)
        together = range(index - rank(), index - rank() + world_size()) if sharded else ()
        counters = [[(seed, step, other, layer) for layer in range(len(masks))] for other in (index, *together)]
        begin_pass([*masks.values()], pattern, tiles, counters[0], counters[1:])
        text_loss = cross_entropy(model, token_ids(sequences[rows], device), masking)
        penalty, density = density_penalty(masks, 1 - sparsity, units, settings.target_reduction)
        kept_norm = kept_norm_regularizer(masks, squared_norms, settings.weight_reg_form)
        decay = 1 - step / settings.steps if settings.weight_reg_decay else 1.0
        weight_term = -settings.weight_reg * decay * kept_norm
        sparsity_term = settings.sparsity_reg * penalty if hybrid else torch.zeros_like(penalty)
        loss = text_loss + weight_term + sparsity_term
        # Loss and regularizers are averaged together, so their balance does not depend on gradient accumulation.
        (loss / micro_batches).backward()
        return torch.stack([loss, text_loss, sparsity_term, weight_term, density, kept_norm]).detach() / micro_batches

    def step_fn(step: int, may_stop: Callable[[], None] = lambda: None) -> dict[str, float | None]:
        started = time.monotonic()
        factor = cosine_rate(step, settings.steps, settings.warmup_steps, from_zero=settings.warmup_from_zero)
        rate = settings.lr * factor
        optimizer.param_groups[0]["lr"] = rate
        for mask in masks.values():
            mask.forget_gradients()
        rows = batch_indices(step, settings.batch_size, len(sequences), seed, held_out).reshape(micro_batches, -1)
        # Noise and data depend on the micro-batch, not on the process that computes it.
        terms, gradients = [], OrderedGradients(tile_logits)
        for index in mine:
            may_stop()
            terms.append(micro_step(step, index, rows[index]))
            gradients.add()
        gradients.finish()
        totals = sum_in_order(torch.stack(terms))
        if settings.max_grad_norm is not None:
            clip_gradients([*masks.values()], settings.max_grad_norm)
        optimizer.step()
        pattern, tiles = _sampling(settings, step)
        return {
            # The only time in a step of this code that the host waits for a GPU.
            **dict(zip(TERMS, totals.tolist(), strict=True)),
            "target_density": 1 - sparsity if hybrid else None,
            "pattern_temperature": pattern.temperature if masks[next(iter(masks))].pattern_logits is not None else None,
            "tile_temperature": tiles.temperature if hybrid else None,
            "lr": rate,
            "tokens_per_second": round(rows.size * sequences.shape[1] / (time.monotonic() - started)),
            "peak_memory_mb": peak_memory_mb(device),
        }

    return step_fn


def _sampling(settings: Learning, step: int) -> list[Sampling]:
    """Return the sampling of the patterns and of the tiles at a step."""
    schedules = (
        (settings.pattern_scale, settings.pattern_temperature),
        (settings.tile_scale, settings.tile_temperature),
    )
    steps = settings.steps + settings.ramp_past_end
    return [Sampling(*(ramp(ends, step, steps) for ends in pair), settings.hard) for pair in schedules]
