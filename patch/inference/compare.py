"""A dense model beside its converted ones: in memory at once, the same logits, and what each takes."""

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

# Of the largest logit, what a sum in another order may change of one.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Weights:
    """Bytes of the linear layers that masks are of.

    Attributes:
        dense: of all their weights.
        measured: of what the converted model holds in their place.
        expected: of the same by `packed_bytes`.
    """

    dense: int
    measured: int
    expected: int


@dataclass(frozen=True)
class Agreement:
    """How far the first logits of a converted model are from those of the masked one.

    Attributes:
        difference: the largest.
        largest: absolute value of a logit, at most.
    """

    difference: float
    largest: float


def sharing(model: nn.Module) -> nn.Module:
    """A model of its own modules and the same tensors: layers can be replaced in it, weights must not be changed."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def converted(model: nn.Module, masks: MaskSet) -> nn.Module:
    """`patch.inference.convert` of a model that stays as it is; all but the masked layers is shared with it.

    Raises:
        InputError: see there.
    """
    return convert(sharing(model), masks)


def masked(model: nn.Module, masks: MaskSet) -> nn.Module:
    """A dense model with the masked weights at zero, which `model` keeps; all but the masked layers is shared.

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
        model: dense, as it was before.
        masks: of ``other``.
        other: converted.
        tokens: `[batch, prompt]`.
        name: of the cell, for the message.

    Raises:
        RuntimeError: they differ by more than rounding explains: what is fast would not be the model that was measured.
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
    """Bytes of the masked layers of a dense model, and of what a converted one has in their place."""
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
    """Which backends multiply inputs of so many rows in a converted model, each with its number of layers.

    `dense` are the layers that are as in the dense model.
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
    """Bytes of all parameters and buffers, each once."""
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers()) if t.numel()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def peak_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Memory that a model takes while it generates, in bytes.

    On `cuda` the most that the allocator had given out, less what was there before and is not the model's: other
    candidates wait beside it. On the CPU its parameters and buffers alone.
    """
    own = tensor_bytes(model)
    if next(model.parameters()).device.type != "cuda":
        return own
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return own + torch.cuda.max_memory_allocated() - before
