"""Kernels, a learning run and generation on a GPU, compared with a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from patch.inference.packed import unpack
from patch.learning.learn import learn
from patch.learning.learning_settings import Learning
from patch.masks.kernels import Layer, Sampling, eager, kernel_for
from patch.masks.nm import NM
from patch.masks.proximal import shrink_two_four_
from patch.pruning.prune import prune
from tests.unit.inference.interpreted import packed_weight

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 130])
@pytest.mark.parametrize("dense", [0.0, 0.5, 1.0])
def test_packed_products_are_those_of_the_unpacked_weight(dtype: torch.dtype, rows: int, dense: float) -> None:
    from patch.inference.backends import fused

    packed = packed_weight(512, 1024, 128, dense, dtype, "cuda")
    inputs = torch.randn(rows, 1024, device="cuda").to(dtype)
    actual = fused.multiply(packed, inputs)
    expected = inputs.double() @ unpack(packed).double().T
    scale = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-6}[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=scale * float(expected.abs().max()))
    assert torch.equal(actual, fused.multiply(packed, inputs))


def test_a_graph_captures_a_packed_product() -> None:
    from patch.inference.backends import fused

    packed = packed_weight(512, 1024, 128, 0.5, torch.float16, "cuda")
    inputs = torch.randn(2, 1024, device="cuda", dtype=torch.float16)
    fused.multiply(packed, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = fused.multiply(packed, inputs)
    inputs.copy_(torch.randn(2, 1024))
    graph.replay()
    assert torch.equal(captured, fused.multiply(packed, inputs))


@pytest.mark.parametrize("strength", [0.25, 1.0])
@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0])
def test_the_proximal_operator_gives_the_bits_of_a_cpu(scale: float, strength: float) -> None:
    weight = scale * torch.randn(67, 1028, generator=torch.Generator().manual_seed(0))
    found = weight.cuda()
    statistics = shrink_two_four_(found, strength)
    expected = shrink_two_four_(weight, strength)
    assert torch.equal(found.cpu(), weight)
    assert [float(value) for value in statistics] == pytest.approx([float(value) for value in expected], rel=1e-6)


def _masked(layer: Layer, gradient: Tensor) -> list[Tensor]:
    """Return the masked weights of a layer, again, their squared norm, and all gradients."""
    kernel = kernel_for(layer.weight.device, layer.weight.dtype) if layer.weight.is_cuda else eager
    masked, again = torch.empty_like(layer.weight), torch.empty_like(layer.weight)
    norm = kernel.forward(layer, 0, masked)
    grads = [None if part is None else torch.zeros_like(part) for part in (layer.logits, layer.tile_density)]
    kernel.backward(layer, 0, gradient, again, norm.new_tensor(0.3, dtype=torch.float32), grads[0], True, grads[1])
    return [masked, again, norm, *(part for part in grads if part is not None)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("learned", "tile"), [(True, 128), (True, None), (False, 128), (True, 4)])
def test_masks_are_those_of_plain_pytorch(learned: bool, tile: int | None, hard: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = 256, 384
    layer = Layer(
        torch.randn(rows, columns, generator=generator).to(dtype),
        torch.randn(6, rows * columns // 4, generator=generator) if learned else None,
        None if learned else eager.pack_bits(torch.rand(rows, columns, generator=generator) > 0.5),
        torch.rand(rows // tile, columns // tile, generator=generator) if tile else None,
        (tile, tile) if tile else (1, 4),
        Sampling(2.0, 0.7, hard),
        (123, 456),
    )
    gradient = torch.randn(rows, columns, generator=generator).to(dtype)
    moved = {f.name: getattr(layer, f.name) for f in fields(layer) if isinstance(getattr(layer, f.name), Tensor)}
    on_gpu = replace(layer, **{name: tensor.cuda() for name, tensor in moved.items()})
    for actual, expected in zip(_masked(on_gpu, gradient.cuda()), _masked(layer, gradient), strict=True):
        tolerance = 8e-3 if actual.dtype == torch.bfloat16 else 1e-4
        scale = float(expected.abs().max())
        torch.testing.assert_close(actual.cpu().double(), expected.double(), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("method", ["patch-joint", "patch-tile", "maskllm"])
def test_a_learning_run_has_the_losses_of_a_cpu(
    method: str, tiny_model: Callable, sequences: Callable, tmp_path: Path
) -> None:
    sparse = prune(tiny_model("qwen2"), "magnitude", NM(2, 4)).masks
    settings = Learning(steps=4, batch_size=4, micro_batch_size=2, seqlen=12, lr=1e-3)
    options = {"tile": None, "sparsity": 0.5} if method == "maskllm" else {"tile": 4, "sparsity": 0.4}
    losses = {}
    for device in ("cpu", "cuda"):
        curve = tmp_path / f"{device}.jsonl"
        learn(
            *(tiny_model("qwen2").to(device), method, np.concatenate([sequences(8)] * 2), settings),
            **options,
            pattern_prior=sparse,
            tile_prior=sparse,
            frozen=sparse if method == "patch-tile" else None,
            folder=tmp_path / device,
            curve=curve,
        )
        losses[device] = [json.loads(line)["loss"] for line in curve.read_text().splitlines()]
    assert len(losses["cuda"]) == 4
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)
