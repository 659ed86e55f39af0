"""Calibration, pruning and quantization on `device: cuda`: how often the host waits, and the results of a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patch.calibration.input_statistics import block_files, save_statistics
from patch.calibration.walk import walk_blocks
from patch.masks.nm import NM, Pattern, Unstructured
from patch.masks.packed import MaskSet
from patch.models.loading import prunable_linears, weight_matrix
from patch.pruning.prune import prune
from patch.quantization.model import compensate_block, quantize_model
from patch.quantization.quantization_settings import Quantization

from .conftest import LAYERS
from .cuda_walk import CudaWalk

# Weights and norms of a block, and those outside of the blocks.
PARAMETERS = 9
METHODS = ["magnitude", "wanda", "ria", "sparsegpt", "thanos", "admm", "admm_grad"]
PATTERNS = [NM(2, 4), Unstructured(0.5)]


def _waits(walk: CudaWalk, function: Callable[[], Any]) -> Counter[str]:
    before = walk.synchronizations.copy()
    function()
    return walk.synchronizations - before


def _in(waits: Counter[str], *folders: str) -> int:
    """Return how often the host waits in the code of some folders."""
    return sum(count for line, count in waits.items() if line.startswith(folders))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_masks_and_weights_are_those_of_a_cpu(
    method: str, pattern: Pattern, device: str, llama: Callable, sequences: Callable
) -> None:
    expected, model = llama(device="cpu"), llama(device=device)
    masks = [
        prune(one, method, pattern, sequences(5), batch_size=2, device=place)
        for one, place in ((expected, "cpu"), (model, "cuda"))
    ]
    assert {parameter.device.type for parameter in model.parameters()} == {device}
    for name, linear in prunable_linears(model).items():
        assert torch.equal(masks[1].masks[name], masks[0].masks[name]), name
        wanted = weight_matrix(prunable_linears(expected)[name])
        torch.testing.assert_close(weight_matrix(linear).cpu(), wanted, rtol=1e-4, atol=1e-4)


# The host waits for each layer: once to get its mask, and to read the conditions that the method branches on. ADMM-Grad
# selects a mask 15 times, with a threshold over the whole matrix.
@pytest.mark.parametrize(
    "method, pattern, limit",
    [
        ("magnitude", NM(2, 4), 1),
        ("wanda", NM(2, 4), 1),
        ("sparsegpt", NM(2, 4), 2),
        ("thanos", NM(2, 4), 5),
        ("ria", NM(2, 4), 1),
        ("admm", NM(2, 4), 2),
        ("admm_grad", NM(2, 4), 72),
        ("magnitude", Unstructured(0.5), 6),
        ("wanda", Unstructured(0.5), 2),
        ("sparsegpt", Unstructured(0.5), 7),
        ("thanos", Unstructured(0.5), 11),
        ("ria", Unstructured(0.5), 6),
        ("admm", Unstructured(0.5), 7),
        ("admm_grad", Unstructured(0.5), 77),
    ],
)
def test_pruning_waits_a_constant_number_of_times_for_a_layer(
    method: str, pattern: Pattern, limit: int, llama: Callable, sequences: Callable, walk: CudaWalk
) -> None:
    two, four = (
        _in(_waits(walk, lambda: prune(llama(blocks), method, pattern, sequences(4))), "pruning", "masks")  # noqa: B023
        for blocks in (2, 4)
    )
    assert two <= 2 * LAYERS * limit and four == 2 * two, walk.synchronizations


@pytest.mark.parametrize("gram", [False, True])
def test_calibration_waits_for_a_batch_not_for_a_sequence(
    gram: bool, llama: Callable, sequences: Callable, walk: CudaWalk, tmp_path: Path
) -> None:
    def calibrate(batches: int, batch_size: int) -> Counter[str]:
        model = llama(device="cpu")
        ids = sequences(batches * batch_size)
        return _waits(walk, lambda: walk_blocks(model, ids, lambda *_: None, batch_size, gram, "dense", "cuda"))

    first, more, larger = calibrate(2, 2), calibrate(4, 2), calibrate(2, 4)
    # A batch's states are read and written once a block.
    assert sum(more.values()) - sum(first.values()) == 2 * 2 * 2, more - first
    assert larger == first
    # A block moves to the GPU and back.
    assert _in(first, "models/loading.py") == 2 * 2 * PARAMETERS


def test_statistics_in_files_give_the_same_masks(llama: Callable, sequences: Callable, tmp_path: Path) -> None:
    paths, ids = block_files(tmp_path), sequences(4)
    walk_blocks(llama(), ids, lambda _, found: save_statistics(next(paths), found), 2, True, "dense")
    found: list[MaskSet] = [
        prune(llama(device="cpu"), "sparsegpt", NM(2, 4), device="cuda", **inputs)
        for inputs in ({"statistics": tmp_path}, {"sequences": ids, "propagate": "dense", "batch_size": 2})
    ]
    for name, mask in found[0].masks.items():
        assert torch.equal(mask, found[1].masks[name]), name


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_quantized_layers_are_those_of_a_cpu(device: str, llama: Callable, sequences: Callable, walk: CudaWalk) -> None:
    settings = Quantization(group_size=16, rank_ratio=0.25, quantize_adapters=True)

    def compensate(home: str, place: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        pruned = lambda name, weight: weight.masked_fill(weight.abs() < 0.1, 0)  # noqa: E731
        walk_blocks(
            llama(device=home),
            sequences(4),
            lambda linears, statistics: found.update(compensate_block(linears, statistics, pruned, settings)),
            device=place,
        )
        return found

    expected = compensate("cpu", "cpu")
    with torch.no_grad():
        actual = compensate(device, "cuda")
    for name, layer in actual.items():
        assert torch.equal(layer.weight.codes, expected[name].weight.codes), name
        product = expected[name].adapter.left @ expected[name].adapter.right
        torch.testing.assert_close(layer.adapter.left @ layer.adapter.right, product, rtol=1e-3, atol=1e-4)
    # For each layer: two conditions of the weight and adapters, one of the statistics, and the results.
    assert _in(walk.synchronizations, "quantization") <= 2 * LAYERS * 12, walk.synchronizations


def test_plain_quantization_waits_three_times_for_a_layer(llama: Callable, walk: CudaWalk) -> None:
    model = llama()
    waits = _waits(walk, lambda: quantize_model(model, 4, 16))
    assert sum(waits.values()) == 3 * 2 * LAYERS, waits
