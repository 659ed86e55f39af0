"""Training of a small model of a known family from scratch, so that the workflow needs no download."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from patch.errors import InputError
from patch.learning.loop import run_steps
from patch.learning.progress import peak_memory_mb
from patch.learning.schedules import batch_indices, cosine_rate
from patch.learning.trackers import UNTRACKED, Tracking
from patch.models.config_keys import check_config_keys
from patch.models.loading import prunable_linears
from patch.models.model_settings import TrainedModel


def new_model(source: TrainedModel, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """Return a model with random weights, a function of the training seed.

    Raises:
        InputError: the configuration of the family rejects the settings.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    family = type(AutoConfig.for_model(source.architecture))
    check_config_keys("config", source.architecture, source.config)
    special = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(source.training.seed)
    try:
        config = family(**source.config, **special)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - each family refuses a value in its own way
        reason = " ".join(str(error).split())
        raise InputError(f"the config of a {source.architecture} model is refused by transformers: {reason}") from error


def train(
    source: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: np.ndarray,
    folder: Path,
    curve: Path,
    tracking: Tracking = UNTRACKED,
) -> nn.Module:
    """Train by next-token prediction, with linear warm-up and cosine decay to a twentieth.

    Muon trains the blocks' matrices: here it needs half of AdamW's steps to the same loss, and steps take most of the
    embedded default's time. AdamW trains everything else.

    Args:
        source: settings of the family, the sizes and the run.
        tokenizer: tokenizer that gives the vocabulary's size and the special tokens.
        sequences: `[count, seqlen]` token ids.
        folder: folder of the checkpoints, from which a stopped run resumes.
        curve: file of the training curve, in JSON lines.
        tracking: experiment trackers and progress reports.

    Returns:
        The trained model in fp32.
    """
    run = source.training
    model = new_model(source, tokenizer).train()
    matrices = [linear.weight for linear in prunable_linears(model).values()]
    others = [parameter for parameter in model.parameters() if all(parameter is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, run.matrix_lr, run.weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, run.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step_fn(step: int, may_stop: Callable[[], None]) -> dict[str, float | None]:
        started = time.monotonic()
        factor = cosine_rate(step, run.steps, run.warmup_steps, floor=0.05)
        for optimizer, peak in ((muon, run.matrix_lr), (adamw, run.lr)):
            optimizer.param_groups[0]["lr"] = peak * factor
        rows = batch_indices(step, run.batch_size, len(sequences), run.seed)
        tokens = torch.as_tensor(sequences[rows].astype(np.int64))
        logits = model(tokens, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        muon.step()
        adamw.step()
        return {
            "loss": loss.item(),
            "lr": run.lr * factor,
            "tokens_per_second": round(tokens.numel() / (time.monotonic() - started)),
            "peak_memory_mb": peak_memory_mb("cpu"),
        }

    run_steps(
        run.steps,
        step_fn,
        {"model": model, "muon": muon, "adamw": adamw},
        folder,
        source.model_dump_json(),
        curve,
        2.0,
        10,
        "train",
        tracking,
    )
    return model.eval()
