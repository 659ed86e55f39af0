"""Sparse fine-tuning: training of the kept weights of a pruned model under a fixed mask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patch.distributed.collectives import rank, sum_over_processes, world_size
from patch.learning.finetuning_settings import Finetuning, Kind
from patch.learning.loop import StepFunction, run_steps
from patch.learning.objective import add_gradients, recomputed_blocks
from patch.learning.progress import peak_memory_mb
from patch.learning.schedules import batch_indices, linear_rate
from patch.learning.trackers import UNTRACKED, Tracking
from patch.masks.packed import MaskSet, check_masks
from patch.models.loading import weight_matrix

# Defaults of the trainer that the published codes use.
BETAS, GRADIENT_NORM = (0.9, 0.999), 1.0


def finetune(
    model: nn.Module,
    masks: MaskSet,
    kind: Kind,
    sequences: np.ndarray,
    settings: Finetuning,
    seed: int = 0,
    folder: Path | str = "checkpoints",
    curve: Path | str = "curve.jsonl",
    upstream: str = "",
    tracking: Tracking = UNTRACKED,
) -> None:
    """Train the prunable weights of a model under fixed masks, in place. Removed weights are exactly zero afterwards.

    Embeddings, norms, biases and the output layer are frozen. The trained parameters, their gradients and moments are
    in fp32. Each forward pass uses the weights that the model has if training ends there: masked, in its own dtype.

    With several processes (`torch.distributed` is initialised) each computes its part of every batch. All have the same
    arguments and get the same weights, those of one process but for rounding.

    Args:
        model: frozen causal language model; the masks need not be applied yet.
        masks: masks of its prunable layers.
        kind: `full` trains all kept weights; `lora` trains the factors of `(W + alpha / rank * B A) * mask`.
        sequences: `[count, seqlen]` token ids.
        settings: settings of the run.
        seed: seed of the order of the data and of the initial adapters.
        folder: folder of the checkpoints, from which a stopped run resumes. Remove it when the weights are saved.
        curve: file of the training curve, in JSON lines.
        upstream: digest of the model, masks and sequences; a checkpoint of others is not resumed.
        tracking: experiment trackers that the curve is also reported to.

    Raises:
        InputError: the loss is not finite, the masks are of another model, or the processes cannot divide a batch
            evenly.

    Source: Wanda (arXiv 2306.11695) and SLiM (arXiv 2410.09615).
    """
    linears = check_masks(model.eval(), masks)
    weights = _masked_weights(linears, masks, kind, settings, seed)
    trained = nn.ParameterList(parameter for weight in weights.values() for parameter in weight.parameters)
    # The fused implementation needs no memory beside its moments.
    optimizer = torch.optim.AdamW(trained, settings.lr, BETAS, weight_decay=settings.weight_decay, fused=True)
    with _attached(linears, weights), recomputed_blocks(model, settings.gradient_checkpointing):
        run_steps(
            settings.steps,
            _step_function(model, sequences, settings, seed, optimizer),
            {"weights": trained, "optimizer": optimizer},
            Path(folder),
            f"finetune {kind} {seed} {upstream} {settings.model_dump_json()}",
            Path(curve),
            settings.checkpoint_minutes,
            name=f"finetune {kind}",
            tracking=tracking,
        )
    with torch.no_grad():
        for name, linear in linears.items():
            weight_matrix(linear).copy_(weights[name]())


class _MaskedWeight:
    """Masked weight of a layer as a function of the trained parameters.

    Args:
        parameters: trained fp32 parameters.
        value: returns the `[out, in]` weight before it is masked.
        mask: `[out, in]` bool.
        dtype: dtype of the layer.
    """

    def __init__(
        self, parameters: list[nn.Parameter], value: Callable[[], Tensor], mask: Tensor, dtype: torch.dtype
    ) -> None:
        self.parameters, self._value, self._mask, self._dtype = parameters, value, mask, dtype

    def __call__(self) -> Tensor:
        # This also masks the gradient, so that no update reaches a removed weight.
        return torch.where(self._mask, self._value(), 0.0).to(self._dtype)


def _masked_weights(
    linears: Mapping[str, nn.Module], masks: MaskSet, kind: Kind, settings: Finetuning, seed: int
) -> dict[str, _MaskedWeight]:
    weights = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, linear in linears.items():
            parameters, value = _adapted(linear, settings) if kind == "lora" else _copied(linear, masks.masks[name])
            mask = masks.masks[name].to(linear.weight.device)
            weights[name] = _MaskedWeight(parameters, value, mask, linear.weight.dtype)
    return weights


def _copied(linear: nn.Module, mask: Tensor) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
    """Return a trainable fp32 copy of a weight. Removed weights are zero, so that weight decay ignores them."""
    parameter = nn.Parameter(torch.where(mask.to(linear.weight.device), weight_matrix(linear).detach().float(), 0.0))
    return [parameter], lambda: parameter


def _adapted(linear: nn.Module, settings: Finetuning) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
    """Return the factors of a LoRA adapter, and the sum of the frozen weight and their product.

    The model keeps its own layers. peft's forward pass would add `B A x` without the mask, which no sparse weight
    can compute.
    """
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    rank, alpha = settings.lora_rank, settings.lora_alpha
    adapter = Linear(linear, "default", LoraConfig(r=rank, lora_alpha=alpha), r=rank, lora_alpha=alpha)
    factors = [adapter.lora_A["default"].weight, adapter.lora_B["default"].weight]
    for factor in factors:
        factor.data = factor.data.float()
        factor.requires_grad_(True)
    return factors, lambda: weight_matrix(linear) + adapter.get_delta_weight("default")


@contextmanager
def _attached(linears: Mapping[str, nn.Module], weights: Mapping[str, _MaskedWeight]) -> Iterator[None]:
    """Use the masked weights in the forward passes within the block."""
    with ExitStack() as stack:
        for name, linear in linears.items():
            linear.forward = lambda inputs, weight=weights[name], bias=linear.bias: F.linear(inputs, weight(), bias)
            stack.callback(delattr, linear, "forward")
        yield


def _step_function(
    model: nn.Module, sequences: np.ndarray, settings: Finetuning, seed: int, optimizer: torch.optim.Optimizer
) -> StepFunction:
    parameters = optimizer.param_groups[0]["params"]
    device = parameters[0].device
    micro_batches, mine = len(settings.micro_batches()), settings.micro_batches(rank(), world_size())

    def step_fn(step: int, may_stop: Callable[[], None] = lambda: None) -> dict[str, float | None]:
        started = time.monotonic()
        rate = settings.lr * linear_rate(step, settings.steps, settings.warmup_steps)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        rows = batch_indices(step, settings.batch_size, len(sequences), seed).reshape(micro_batches, -1)
        total = add_gradients(model, (sequences[rows[index]] for index in mine), micro_batches, may_stop)
        sum_over_processes(parameter.grad for parameter in parameters)
        sum_over_processes([total])
        norm = nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        optimizer.step()
        # The host waits for a GPU once to read both numbers.
        loss, gradient_norm = torch.stack([total, norm]).tolist()
        return {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "lr": rate,
            "tokens_per_second": round(rows.size * sequences.shape[1] / (time.monotonic() - started)),
            "peak_memory_mb": peak_memory_mb(device),
        }

    return step_fn
