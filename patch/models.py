"""Load and save causal language models, and find what may be pruned in them by structure alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from patch.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@cache
def _transposed() -> type[nn.Module]:
    """The linear layer of GPT-2, whose weight is `[in, out]`."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: `nn.Linear`, or the transposed one of GPT-2."""
    return isinstance(module, (nn.Linear, _transposed()))


def is_transposed(linear: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as `[in, out]`."""
    return isinstance(linear, _transposed())


def weight_matrix(linear: nn.Module) -> Tensor:
    """The weight of a linear layer as `[out, in]`: itself, or a transposed view; what is written to it is kept."""
    return linear.weight.T if is_transposed(linear) else linear.weight


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of decoder blocks: the largest list of equal-typed modules that hold linear layers.

    Returns:
        The list's name within ``model`` and the list.

    Raises:
        InputError: the model has no such list.
    """
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len({type(block) for block in module}) != 1:
            continue
        weights = sum(layer.weight.numel() for layer in module.modules() if is_linear(layer))
        if weights and (best is None or weights > best[0]):
            best = (weights, name, module)
    if best is None:
        raise InputError(f"{type(model).__name__} has no stack of decoder blocks with linear layers")
    return best[1], best[2]


def blocks_on(
    model: nn.Module, device: torch.device | str | None = None
) -> Iterator[tuple[nn.Module, dict[str, nn.Module]]]:
    """Each decoder block, on ``device`` while it is looked at, with its linear layers by their names in ``model``."""
    home = next(model.parameters()).device
    prefix, blocks = decoder_blocks(model)
    for index, block in enumerate(blocks):
        block.to(device or home)
        yield block, {f"{prefix}.{index}.{name}": m for name, m in block.named_modules() if is_linear(m)}
        block.to(home)


def prunable_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer inside the decoder blocks, by its name within ``model``, in order.

    The embedding and the output layer stand outside the blocks and are never pruned.
    """
    prefix, blocks = decoder_blocks(model)
    return {f"{prefix}.{name}": module for name, module in blocks.named_modules() if is_linear(module)}


def load_model(folder: Path | str, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a causal language model from a local folder, frozen and in evaluation mode.

    Raises:
        InputError: the folder holds no model, or one that is damaged.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not (Path(folder) / "config.json").exists():
        raise InputError(f"model folder {folder}: no config.json in it; give a folder that save_pretrained wrote")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"model folder {folder} cannot be loaded: {error}") from None
    if report["missing_keys"]:
        raise InputError(f"model folder {folder}: its files lack the weights {sorted(report['missing_keys'])[0]}, ...")
    return model.to(device).eval().requires_grad_(False)


def load_skeleton(folder: Path | str) -> PreTrainedModel:
    """A causal language model without its weights, on the `meta` device: layers, names and shapes.

    Raises:
        InputError: the folder holds no model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model folder {folder} cannot be loaded: {error}") from None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local folder.

    Raises:
        InputError: the folder holds none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"tokenizer folder {folder} cannot be loaded: {error}") from None
