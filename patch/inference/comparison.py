"""Comparison of a dense model with its converted ones, which share its memory: logits, bytes and backends."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from patch.inference.backends import BACKENDS, backend_for
from patch.inference.generation import Generation
from patch.inference.linear import HybridLinear
from patch.inference.packed import packed_bytes
from patch.masks.packed import MaskSet, apply_masks
from patch.models.loading import prunable_linears

# Tolerances relative to the largest logit, for sums in another order.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def share_tensors(model: nn.Module) -> nn.Module:
    """Return a model with its own modules and the same tensors: layers may be replaced, weights not changed."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def masked_copy(model: nn.Module, masks: MaskSet) -> nn.Module:
    """Return a dense model with the masked weights at zero; it shares all but the masked layers with ``model``.

    Raises:
        InputError: the masks are of another model.
    """
    masked = share_tensors(model)
    for linear in prunable_linears(masked).values():
        linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    apply_masks(masked, masks)
    return masked


def logits_difference(
    model: nn.Module, masks: MaskSet, converted: nn.Module, tokens: Tensor, name: str
) -> tuple[float, float]:
    """Compare a converted model's first logits with those of the same model, dense and masked.

    Args:
        model: the dense model, unconverted.
        masks: the masks of ``converted``.
        converted: the converted model.
        tokens: `[batch, prompt]` int64.
        name: name of the run, for the message.

    Returns:
        The largest absolute difference, and the largest absolute logit.

    Raises:
        RuntimeError: they differ by more than rounding explains, so the speed would not be that of the measured model.
    """
    expected = Generation(masked_copy(model, masks), tokens, 2).first_logits()
    found = Generation(converted, tokens, 2).first_logits()
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    tolerance = TOLERANCES[next(model.parameters()).dtype] * max(largest, 1.0)
    if not difference <= tolerance:
        raise RuntimeError(
            f"{name}: the converted model's logits differ by {difference:.3g} from the masked model's, more than the "
            f"{tolerance:.3g} that rounding explains; its speed would not be this model's"
        )
    return difference, largest


def weight_bytes(model: nn.Module, converted: nn.Module) -> dict[str, int]:
    """Return the bytes of the linear layers that have masks.

    Returns:
        `dense`: bytes of their weights in the dense model; `measured`: bytes of their replacements in the converted
        model; `expected`: the same, computed by `packed_bytes`.
    """
    dense = measured = expected = 0
    for name, linear in prunable_linears(model).items():
        layer = converted.get_submodule(name)
        dense += linear.weight.nbytes
        if isinstance(layer, HybridLinear):
            packed = layer.packed
            measured += packed.nbytes
            tiles, itemsize = int(packed.dense.sum()), packed.values.itemsize
            expected += packed_bytes(packed.shape, packed.tile, tiles, itemsize, packed.group_size)
        else:
            measured, expected = measured + linear.weight.nbytes, expected + linear.weight.nbytes
    return {"dense": dense, "measured": measured, "expected": expected}


def backend_counts(model: nn.Module, converted: nn.Module, rows: int) -> dict[str, int]:
    """Return the backends that multiply inputs of ``rows`` rows in a converted model, each with its number of layers.

    `dense` counts the layers that are unchanged from the dense model.
    """
    names = {module: name for name, module in BACKENDS.items()}
    counts: Counter[str] = Counter()
    for name in prunable_linears(model):
        layer, used = converted.get_submodule(name), "dense"
        if isinstance(layer, HybridLinear):
            packed = layer.packed
            multiply = backend_for(packed, packed.values.new_empty(rows, layer.in_features), layer.backend)
            used = names.get(multiply.__module__, multiply.__module__)
        counts[used] += 1
    return dict(counts)


def peak_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Return the memory that a model needs while it generates, in bytes.

    On `cuda` this is the allocator's peak during ``run``, less the memory in use before that is not the model's, since
    other candidates are in memory too. On the CPU it counts the model's parameters and buffers alone, each once.
    """
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers()) if t.numel()}
    own = sum(tensor.nbytes for tensor in tensors.values())
    if next(model.parameters()).device.type != "cuda":
        return own
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return own + torch.cuda.max_memory_allocated() - before
