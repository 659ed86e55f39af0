"""Comparison of a dense model with its converted ones, which share its memory: logits, bytes and backends."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patch.inference.backends import BACKENDS, backend_for
from patch.inference.convert import convert
from patch.inference.generation import Generation
from patch.inference.linear import HybridLinear
from patch.inference.packed import packed_bytes
from patch.masks.packed import MaskSet, apply_masks
from patch.models.loading import prunable_linears

# Tolerances relative to the largest logit, for sums in another order.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Weights:
    """Bytes of the linear layers that have masks.

    Attributes:
        dense: bytes of all their weights in the dense model.
        measured: bytes of what the converted model holds in their place.
        expected: the same, computed by `packed_bytes`.
    """

    dense: int
    measured: int
    expected: int


@dataclass(frozen=True)
class Agreement:
    """Difference between the first logits of a converted model and those of the masked one.

    Attributes:
        difference: the largest absolute difference.
        largest: the largest absolute value of a logit.
    """

    difference: float
    largest: float


def sharing(model: nn.Module) -> nn.Module:
    """Return a model with its own modules and the same tensors: layers may be replaced, weights not changed."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def converted(model: nn.Module, masks: MaskSet) -> nn.Module:
    """Return a model converted by `patch.inference.convert`; it shares all but the masked layers with ``model``.

    Raises:
        InputError: see `patch.inference.convert`.
    """
    return convert(sharing(model), masks)


def masked(model: nn.Module, masks: MaskSet) -> nn.Module:
    """Return a dense model with the masked weights at zero; it shares all but the masked layers with ``model``.

    Raises:
        InputError: the masks are of another model.
    """
    other = sharing(model)
    for linear in prunable_linears(other).values():
        linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    apply_masks(other, masks)
    return other


def agreement(model: nn.Module, masks: MaskSet, other: nn.Module, tokens: Tensor, name: str) -> Agreement:
    """Compare a converted model's first logits with those of the same model, dense and masked.

    Args:
        model: the dense model, unconverted.
        masks: the masks of ``other``.
        other: the converted model.
        tokens: `[batch, prompt]` int64.
        name: name of the run, for the message.

    Raises:
        RuntimeError: they differ by more than rounding explains, so the speed would not be that of the measured model.
    """
    expected = Generation(masked(model, masks), tokens, 2).first_logits()
    found = Generation(other, tokens, 2).first_logits()
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    tolerance = TOLERANCES[next(model.parameters()).dtype] * max(largest, 1.0)
    if not difference <= tolerance:
        raise RuntimeError(
            f"{name}: the converted model's logits differ by {difference:.3g} from the masked model's, more than the "
            f"{tolerance:.3g} that rounding explains; its speed would not be this model's"
        )
    return Agreement(difference, largest)


def weights(model: nn.Module, other: nn.Module) -> Weights:
    """Return the bytes of the masked layers of a dense model, and of their replacements in a converted one."""
    dense = measured = expected = 0
    for name, linear in prunable_linears(model).items():
        layer = other.get_submodule(name)
        whole = linear.weight.numel() * linear.weight.element_size()
        dense += whole
        if isinstance(layer, HybridLinear):
            packed = layer.packed
            measured += packed.nbytes
            expected += packed_bytes(packed.shape, packed.tile, int(packed.dense.sum()), packed.values.element_size())
        else:
            measured, expected = measured + whole, expected + whole
    return Weights(dense, measured, expected)


def backends(model: nn.Module, other: nn.Module, rows: int) -> dict[str, int]:
    """Return the backends that multiply inputs of ``rows`` rows in a converted model, each with its number of layers.

    `dense` counts the layers that are unchanged from the dense model.
    """
    names = {module: name for name, module in BACKENDS.items()}
    counts: Counter[str] = Counter()
    for name in prunable_linears(model):
        layer, used = other.get_submodule(name), "dense"
        if isinstance(layer, HybridLinear):
            packed = layer.packed
            multiply = backend_for(packed, packed.values.new_empty(rows, layer.in_features), layer.backend)
            used = names.get(multiply.__module__, multiply.__module__)
        counts[used] += 1
    return dict(counts)


def tensor_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, each counted once."""
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers()) if t.numel()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def peak_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Return the memory that a model needs while it generates, in bytes.

    On `cuda` this is the allocator's peak, less the memory in use before that is not the model's, since other
    candidates are in memory too. On the CPU it counts the model's parameters and buffers alone.
    """
    own = tensor_bytes(model)
    if next(model.parameters()).device.type != "cuda":
        return own
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return own + torch.cuda.max_memory_allocated() - before
