"""Statistics of the sequential walk against whole forward passes of the partly pruned model."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from patch.calibration import InputStatistics, prune_sequentially
from patch.models import decoder_blocks, prunable_linears

FAMILIES = ("qwen2", "llama", "gemma3_text")


def halve(linear: nn.Linear) -> None:
    """A pruning that changes outputs a lot and needs no statistics: the first of every two weights goes."""
    linear.weight.data[:, ::2] = 0


def walk(model: nn.Module, windows: np.ndarray, batch_size: int = 4, gram: bool = True) -> dict[str, InputStatistics]:
    seen: dict[str, InputStatistics] = {}

    def prune_block(linears: dict[str, nn.Linear], statistics: dict[str, InputStatistics]) -> None:
        assert set(linears) == set(statistics)
        seen.update(statistics)
        for linear in linears.values():
            halve(linear)

    prune_sequentially(model, windows, batch_size, gram, prune_block)
    return seen


def brute_force(model: nn.Module, windows: np.ndarray) -> dict[str, torch.Tensor]:
    """Gram matrix of every linear's input: one whole forward pass for each block, the blocks before it pruned."""
    grams: dict[str, torch.Tensor] = {}
    prefix, blocks = decoder_blocks(model)
    tokens = torch.as_tensor(windows.astype(np.int64))
    for index, block in enumerate(blocks):
        inputs: dict[str, torch.Tensor] = {}
        linears = {f"{prefix}.{index}.{n}": m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        handles = [
            linear.register_forward_pre_hook(lambda _, args, name=name, inputs=inputs: inputs.update({name: args[0]}))
            for name, linear in linears.items()
        ]
        model(tokens, use_cache=False)
        for handle in handles:
            handle.remove()
        for name, x in inputs.items():
            flat = x.double().reshape(-1, x.shape[-1])
            grams[name] = flat.T @ flat
        for linear in linears.values():
            halve(linear)
    return grams


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_squares_and_gram(family: str, batch_size: int, tiny_model: Callable, windows: Callable) -> None:
    expected = brute_force(tiny_model(family), windows())
    model = tiny_model(family)
    actual = walk(model, windows(), batch_size)
    assert set(actual) == set(expected) == set(prunable_linears(model))
    for name, gram in expected.items():
        statistics = actual[name]
        scale = float(gram.abs().max())
        assert statistics.gram.dtype == statistics.squares.dtype == torch.float32
        assert statistics.sequences == 6
        torch.testing.assert_close(statistics.gram.double(), gram, rtol=1e-3, atol=1e-4 * scale, msg=name)
        torch.testing.assert_close(statistics.squares.double(), gram.diagonal(), rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_squares_alone(family: str, tiny_model: Callable, windows: Callable) -> None:
    with_gram, without = walk(tiny_model(family), windows()), walk(tiny_model(family), windows(), gram=False)
    for name, statistics in without.items():
        assert statistics.gram is None
        torch.testing.assert_close(statistics.squares, with_gram[name].squares, rtol=1e-4, atol=1e-4)


def test_layers_that_share_an_input_share_statistics_and_others_do_not(tiny_model: Callable, windows: Callable) -> None:
    seen = walk(tiny_model(), windows())
    q, k, v, o = (seen[f"model.layers.1.self_attn.{n}_proj"].gram for n in "qkvo")
    gate, up = (seen[f"model.layers.1.mlp.{n}_proj"].gram for n in ("gate", "up"))
    assert torch.equal(q, k) and torch.equal(q, v) and torch.equal(gate, up)
    assert not torch.equal(q, o) and not torch.equal(q, gate)


def record_arguments(model: nn.Module, run: Callable[[], object]) -> list[list[dict]]:
    """What each block is given by keyword, call by call, whoever calls it."""
    _, blocks = decoder_blocks(model)
    calls: list[list[dict]] = [[] for _ in blocks]
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs, index=index: calls[index].append({"states": args[0], **kwargs}), with_kwargs=True
        )
        for index, block in enumerate(blocks)
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return calls


def test_each_gemma_block_gets_its_own_mask_and_rotary_embedding(tiny_model: Callable, windows: Callable) -> None:
    model, tokens = tiny_model("gemma3_text"), torch.as_tensor(windows().astype(np.int64))
    expected = record_arguments(model, lambda: model(tokens, use_cache=False))
    actual = record_arguments(model, lambda: walk(model, windows(), batch_size=100))

    def cosines(call: dict) -> torch.Tensor:
        return call["position_embeddings"][0]

    sliding, full, _ = (calls[0] for calls in expected)
    assert not torch.equal(cosines(sliding), cosines(full)), "the case tests nothing"
    for own, theirs in zip(expected, actual, strict=True):
        for call in theirs:
            assert torch.equal(cosines(call), cosines(own[0]))
            mask = own[0]["attention_mask"]
            assert (mask is None) == (call["attention_mask"] is None)
            assert mask is None or torch.equal(call["attention_mask"].expand_as(mask), mask)


def test_the_window_of_sliding_attention_is_obeyed(tiny_model: Callable, windows: Callable) -> None:
    """Statistics change when a block slides instead of attending to everything: the mask is really used."""
    sliding = walk(tiny_model("gemma3_text"), windows())
    full = walk(tiny_model("gemma3_text", layer_types=["full_attention"] * 3), windows())
    name = "model.layers.0.self_attn.o_proj"
    assert not torch.allclose(sliding[name].gram, full[name].gram, rtol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_is_as_before(family: str, tiny_model: Callable, windows: Callable) -> None:
    model = tiny_model(family)
    tokens = torch.as_tensor(windows().astype(np.int64))
    before = model(tokens).logits
    prune_sequentially(model, windows(), 4, True, lambda linears, statistics: None)
    assert torch.equal(model(tokens).logits, before)
    for name, module in model.named_modules():
        assert "forward" not in vars(module), name
        assert not module._forward_pre_hooks and not module._forward_hooks, name


@pytest.mark.parametrize("where", ["prune", "forward"])
def test_forward_is_restored_after_an_error(where: str, tiny_model: Callable, windows: Callable) -> None:
    model = tiny_model()
    _, blocks = decoder_blocks(model)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    if where == "forward":
        handle = blocks[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        prune_sequentially(model, windows(), 4, False, fail if where == "prune" else lambda linears, statistics: None)
    if where == "forward":
        handle.remove()
    assert all("forward" not in vars(block) for block in blocks)
    model(torch.as_tensor(windows().astype(np.int64)))


def test_progress(tiny_model: Callable, windows: Callable) -> None:
    seen: list[tuple[int, int]] = []
    prune_sequentially(
        tiny_model(), windows(), 4, False, lambda a, b: None, lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]


def test_inputs_of_finished_batches_are_let_go(tiny_model: Callable, windows: Callable) -> None:
    """Activations of one batch at a time: the memory of a pass does not grow with the calibration set."""
    model, seen = tiny_model(), []
    alive: list[int] = []

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        alive.append(sum(reference() is not None for reference in seen))
        seen.append(weakref.ref(inputs[0]))

    handle = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(hook)
    prune_sequentially(model, windows(), 1, False, lambda linears, statistics: None)
    handle.remove()
    assert len(alive) == 12 and max(alive) == 0
