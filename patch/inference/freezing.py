"""Freezing of a model for inference, with a fast output layer."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model) -> Model:
    """Freeze all parameters of a model, and give its output layer contiguous inputs; return the model.

    transformers multiplies the hidden states of the last tokens alone, a slice. If the weight is frozen, PyTorch
    computes a slice's product as a batched one, for which it copies the weight once for each sequence: with a
    vocabulary of 128,000 that takes tens of times as long as the product.
    """
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if output is not None and _contiguous not in output._forward_pre_hooks.values():
        output.register_forward_pre_hook(_contiguous)
    return model.requires_grad_(False)


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # `contiguous` keeps the strides of a slice of one sequence.
    return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs)
