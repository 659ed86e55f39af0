"""Dispatch of a model's decoder blocks to several devices of one process, by accelerate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from patch.models.loading import decoder_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def device_map(model: PreTrainedModel, count: int) -> dict[str, int]:
    """Return the number of each module's device: blocks whole and in order, tied weights together, bytes balanced.

    Args:
        model: a causal language model; its weights may be on the `meta` device.
        count: number of devices.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = [type(decoder_blocks(model)[1][0]).__name__]
    # The cost model decides whether the blocks fit, so each device only has the limit that balances them.
    memory = get_balanced_memory(model, dict.fromkeys(range(count), sys.maxsize), whole)
    return infer_auto_device_map(model, memory, whole)


def dispatch_blocks(model: PreTrainedModel, devices: Sequence[torch.device]) -> None:
    """Move the modules of a model to ``devices`` by `device_map`, with hooks that move hidden states between them.

    The logits are on the device of the token ids. The model must not be moved or changed afterwards.

    Args:
        model: a causal language model in host memory.
        devices: the devices, from the embedding to the output layer.
    """
    from accelerate import dispatch_model

    dispatch_model(
        model,
        {name: devices[number] for name, number in device_map(model, len(devices)).items()},
        main_device=devices[0],
        # A cache has the keys and values of each block on the block's device.
        skip_keys=model._skip_keys_device_placement,
        # A device that is named several times has hooks too, so that a CPU can stand for several devices.
        force_hooks=True,
    )
