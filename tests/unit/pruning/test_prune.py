"""Tests of pruning a whole model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from patch.masks.nm import NM, Unstructured
from patch.methods import get_method
from patch.models.loading import is_transposed, prunable_linears, weight_matrix
from patch.pruning.magnitude import magnitude
from patch.pruning.prune import prune
from patch.pruning.pruning_settings import Pruning

FAMILIES = ("qwen2", "qwen3", "llama", "gemma3_text", "opt", "gpt2")
METHODS = ["magnitude", "wanda", "ria", "sparsegpt", "thanos", "admm", "admm_grad"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(3, 4), NM(1, 4), NM(4, 8), Unstructured(0.35)])
def test_weights_follow_the_masks(
    family: str, method: str, pattern: NM | Unstructured, tiny_model: Callable, sequences: Callable
) -> None:
    model, dense = tiny_model(family), tiny_model(family).state_dict()
    masks = prune(model, method, pattern, sequences(), batch_size=4)
    masks.verify()
    linears = prunable_linears(model)
    assert masks.pattern == str(pattern) and set(masks.masks) == set(linears)
    assert masks.sparsity == pytest.approx(pattern.sparsity, abs=0.02)
    moved = 0
    for name, linear in linears.items():
        mask, weight, before = masks.masks[name], weight_matrix(linear), dense[f"{name}.weight"]
        before = before.T if is_transposed(linear) else before
        assert (weight[~mask] == 0).all()
        moved += int((weight[mask] != before[mask]).sum())
    assert (moved > 0) == get_method(method).updates_weights
    for name, value in model.state_dict().items():
        if name.removesuffix(".weight") not in linears:
            assert torch.equal(value, dense[name]), name


def test_the_mask_knows_zeros_that_were_there_before(tiny_model: Callable) -> None:
    """Zeros of the dense model are distinguished from pruned weights."""
    model = tiny_model()
    for linear in prunable_linears(model).values():
        linear.weight.data[0] = 0
    masks = prune(model, "magnitude", NM(2, 4))
    assert all((mask.reshape(-1, 4).sum(1) == 2).all() for mask in masks.masks.values())


def test_magnitude_needs_no_sequences_and_looks_at_dense_weights(tiny_model: Callable) -> None:
    masks = prune(tiny_model(), "magnitude", NM(2, 4)).masks
    for name, linear in prunable_linears(tiny_model()).items():
        assert torch.equal(masks[name], magnitude(linear.weight, NM(2, 4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gemma3_text", "gpt2"])
@pytest.mark.parametrize("method", METHODS[1:])
def test_every_batch_size_gives_the_same_bits(
    method: str, family: str, dtype: torch.dtype, tiny_model: Callable, sequences: Callable
) -> None:
    results = []
    for batch_size in (1, 4, 5, 64):
        model = tiny_model(family).to(dtype)
        masks = prune(model, method, NM(2, 4), sequences(count=6), batch_size).masks
        results.append((masks, [linear.weight for linear in prunable_linears(model).values()]))
    first_masks, first_weights = results[0]
    for masks, weights in results[1:]:
        assert all(torch.equal(mask, first_masks[name]) for name, mask in masks.items())
        assert all(torch.equal(one, other) for one, other in zip(weights, first_weights, strict=True))


@pytest.mark.parametrize("family", ["qwen3", "opt"])
@pytest.mark.parametrize("method", METHODS[1:])
def test_rounding_plays_no_part(method: str, family: str, tiny_model: Callable, sequences: Callable) -> None:
    """Rounding differences between devices do not change the masks."""
    single = prune(tiny_model(family), method, NM(2, 4), sequences())
    double = prune(tiny_model(family).double(), method, NM(2, 4), sequences())
    assert all(torch.equal(mask, double.masks[name]) for name, mask in single.masks.items())


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_the_same_masks(method: str, tiny_model: Callable, sequences: Callable) -> None:
    model = tiny_model()
    expected = prune(tiny_model(), method, NM(2, 4), sequences())
    masks = prune(model, method, NM(2, 4), sequences(), device="cuda")
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in masks.masks.items())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_later_blocks_see_pruned_ones(tiny_model: Callable, sequences: Callable) -> None:
    """The second block's Wanda mask depends on the pruned first block."""
    sequential = prune(tiny_model(), "wanda", NM(1, 4), sequences()).masks
    expected, dense = {}, {}
    for target, pruned_first in ((expected, True), (dense, False)):
        model, squares = tiny_model(), {}
        linears = prunable_linears(model)
        if pruned_first:
            for name, linear in linears.items():
                if ".layers.0." in name:
                    linear.weight.data.masked_fill_(~sequential[name], 0)
        handles = [
            linear.register_forward_pre_hook(
                lambda _, inputs, name=name, squares=squares: squares.update({name: inputs[0].square().sum((0, 1))})
            )
            for name, linear in linears.items()
        ]
        model(torch.as_tensor(sequences().astype("int64")))
        for handle in handles:
            handle.remove()
        for name, linear in linears.items():
            score = (linear.weight.abs() * squares[name].sqrt()).reshape(-1, 4)
            best = score.argmax(1)
            target[name] = (torch.arange(4)[None] == best[:, None]).reshape(linear.weight.shape)
    second = [name for name in expected if ".layers.1." in name]
    assert all(torch.equal(sequential[name], expected[name]) for name in second)
    assert not all(torch.equal(sequential[name], dense[name]) for name in second)


def test_settings_reach_wanda(tiny_model: Callable, sequences: Callable) -> None:
    """The inputs of a layer are all zero: shifted norms rank its weights by magnitude, others leave them tied."""
    for shift in (False, True):
        model = tiny_model("opt")
        (*_, before, last) = prunable_linears(model)
        prunable_linears(model)[before].bias.data.fill_(-1e9)
        magnitudes = magnitude(prunable_linears(model)[last].weight, NM(2, 4))
        settings = Pruning(wanda={"shift_zero_metrics": shift})
        mask = prune(model, "wanda", NM(2, 4), sequences(), settings=settings).masks[last]
        assert torch.equal(mask, magnitudes) == shift


def test_settings_of_wanda_are_written_only_if_changed() -> None:
    """The digests of jobs that were finished before these settings existed stay the same."""
    assert "wanda" not in Pruning().model_dump(mode="json")
    changed = Pruning(wanda={"shift_zero_metrics": True})
    assert Pruning.model_validate(changed.model_dump(mode="json")) == changed != Pruning()


def test_settings_reach_sparsegpt(tiny_model: Callable, sequences: Callable) -> None:
    weights = []
    for damp in (0.01, 10.0):
        model = tiny_model()
        prune(model, "sparsegpt", NM(2, 4), sequences(), settings=Pruning(sparsegpt={"damp": damp}))
        weights.append(next(iter(prunable_linears(model).values())).weight)
    assert not torch.equal(*weights)


def test_progress_counts_blocks(tiny_model: Callable, sequences: Callable) -> None:
    seen: list[tuple[int, int]] = []
    prune(
        tiny_model("gemma3_text"),
        "wanda",
        NM(2, 4),
        sequences(),
        on_block=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
