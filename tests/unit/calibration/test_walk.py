"""Tests of the walk's statistics against whole forward passes of the partly pruned model."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from patch.calibration.input_statistics import InputStatistics
from patch.calibration.walk import walk_blocks
from patch.errors import InputError
from patch.models.loading import decoder_blocks, is_linear, prunable_linears, weight_matrix

FAMILIES = ("qwen2", "qwen3", "llama", "gemma3_text", "opt", "gpt2")


def halve(linear: nn.Module) -> None:
    """Prune the first of every two weights, which changes outputs a lot and needs no statistics."""
    weight_matrix(linear).data[:, ::2] = 0


def walk(model: nn.Module, sequences: np.ndarray, batch_size: int = 4, gram: bool = True) -> dict[str, InputStatistics]:
    seen: dict[str, InputStatistics] = {}

    def prune_block(linears: dict[str, nn.Module], statistics: dict[str, InputStatistics]) -> None:
        assert set(linears) == set(statistics)
        seen.update(statistics)
        for linear in linears.values():
            halve(linear)

    walk_blocks(model, sequences, prune_block, batch_size, gram)
    return seen


def brute_force(model: nn.Module, sequences: np.ndarray) -> dict[str, torch.Tensor]:
    """Return the Gram matrix of every linear layer's input, by one whole forward pass for each block."""
    grams: dict[str, torch.Tensor] = {}
    prefix, blocks = decoder_blocks(model)
    tokens = torch.as_tensor(sequences.astype(np.int64))
    for index, block in enumerate(blocks):
        inputs: dict[str, torch.Tensor] = {}
        linears = {f"{prefix}.{index}.{n}": m for n, m in block.named_modules() if is_linear(m)}
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
def test_squares_and_gram(family: str, batch_size: int, tiny_model: Callable, sequences: Callable) -> None:
    expected = brute_force(tiny_model(family), sequences())
    model = tiny_model(family)
    actual = walk(model, sequences(), batch_size)
    assert set(actual) == set(expected) == set(prunable_linears(model))
    for name, gram in expected.items():
        statistics = actual[name]
        scale = float(gram.abs().max())
        assert statistics.gram.dtype == statistics.squares.dtype == torch.float32
        assert statistics.sequences == 6
        torch.testing.assert_close(statistics.gram.double(), gram, rtol=1e-3, atol=1e-4 * scale, msg=name)
        torch.testing.assert_close(statistics.squares.double(), gram.diagonal(), rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_squares_alone(family: str, tiny_model: Callable, sequences: Callable) -> None:
    with_gram, without = walk(tiny_model(family), sequences()), walk(tiny_model(family), sequences(), gram=False)
    for name, statistics in without.items():
        assert statistics.gram is None
        torch.testing.assert_close(statistics.squares, with_gram[name].squares, rtol=1e-4, atol=1e-4)


def test_layers_that_share_an_input_share_statistics_and_others_do_not(
    tiny_model: Callable, sequences: Callable
) -> None:
    seen = walk(tiny_model(), sequences())
    q, k, v, o = (seen[f"model.layers.1.self_attn.{n}_proj"].gram for n in "qkvo")
    gate, up = (seen[f"model.layers.1.mlp.{n}_proj"].gram for n in ("gate", "up"))
    assert torch.equal(q, k) and torch.equal(q, v) and torch.equal(gate, up)
    assert not torch.equal(q, o) and not torch.equal(q, gate)


def record_arguments(model: nn.Module, run: Callable[[], object]) -> list[list[dict]]:
    """Return the keyword arguments of each block, call by call."""
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


def test_each_gemma_block_gets_its_own_mask_and_rotary_embedding(tiny_model: Callable, sequences: Callable) -> None:
    model, tokens = tiny_model("gemma3_text"), torch.as_tensor(sequences().astype(np.int64))
    expected = record_arguments(model, lambda: model(tokens, use_cache=False))
    actual = record_arguments(model, lambda: walk(model, sequences(), batch_size=100))

    def cosines(call: dict) -> torch.Tensor:
        return call["position_embeddings"][0]

    sliding, full, _ = (calls[0] for calls in expected)
    assert not torch.equal(cosines(sliding), cosines(full)), "the case tests nothing"
    for own, theirs in zip(expected, actual, strict=True):
        # A few tokens show the form of a block's output before the walk.
        for call in (call for call in theirs if call["states"].shape[1] == 12):
            assert torch.equal(cosines(call), cosines(own[0]))
            mask = own[0]["attention_mask"]
            assert (mask is None) == (call["attention_mask"] is None)
            assert mask is None or torch.equal(call["attention_mask"].expand_as(mask), mask)


def test_the_window_of_sliding_attention_is_obeyed(tiny_model: Callable, sequences: Callable) -> None:
    """Statistics differ between sliding and full attention, so the attention mask is used."""
    sliding = walk(tiny_model("gemma3_text"), sequences())
    full = walk(tiny_model("gemma3_text", layer_types=["full_attention"] * 3), sequences())
    name = "model.layers.0.self_attn.o_proj"
    assert not torch.allclose(sliding[name].gram, full[name].gram, rtol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_is_as_before(family: str, tiny_model: Callable, sequences: Callable) -> None:
    model = tiny_model(family)
    tokens = torch.as_tensor(sequences().astype(np.int64))
    before = model(tokens).logits
    walk_blocks(model, sequences(), lambda linears, statistics: None, 4, True)
    assert torch.equal(model(tokens).logits, before)
    for name, module in model.named_modules():
        assert "forward" not in vars(module), name
        assert not module._forward_pre_hooks and not module._forward_hooks, name


@pytest.mark.parametrize("where", ["visit", "forward"])
def test_forward_is_restored_after_an_error(where: str, tiny_model: Callable, sequences: Callable) -> None:
    model = tiny_model()
    _, blocks = decoder_blocks(model)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    if where == "forward":
        handle = blocks[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        walk_blocks(model, sequences(), fail if where == "visit" else lambda linears, statistics: None, 4)
    if where == "forward":
        handle.remove()
    assert all("forward" not in vars(block) for block in blocks)
    assert not any(module._forward_pre_hooks for module in model.modules())
    model(torch.as_tensor(sequences().astype(np.int64)))


def test_progress(tiny_model: Callable, sequences: Callable) -> None:
    seen: list[tuple[int, int]] = []
    walk_blocks(tiny_model(), sequences(), lambda a, b: None, on_block=lambda *numbers: seen.append(numbers))
    assert seen == [(1, 2), (2, 2)]


def test_inputs_of_finished_batches_are_let_go(tiny_model: Callable, sequences: Callable) -> None:
    """The memory of a pass does not grow with the calibration set: it holds the activations of one batch."""
    model, seen = tiny_model(), []
    alive: list[int] = []

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        alive.append(sum(reference() is not None for reference in seen))
        seen.append(weakref.ref(inputs[0]))

    handle = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(hook)
    walk_blocks(model, sequences(), lambda linears, statistics: None, 1)
    handle.remove()
    assert len(alive) == 13 and max(alive) == 0, "six sequences twice, and a look at the first block"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_batch_size_gives_the_same_bits(family: str, tiny_model: Callable, sequences: Callable) -> None:
    first, *others = (walk(tiny_model(family), sequences(), size) for size in (1, 4, 5, 100))
    for other in others:
        for name, statistics in first.items():
            assert torch.equal(statistics.gram, other[name].gram), name
            assert torch.equal(statistics.squares, other[name].squares), name


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_inputs_are_those_of_one_pass_of_the_dense_model(
    family: str, tiny_model: Callable, sequences: Callable
) -> None:
    model, found = tiny_model(family), {}

    def visit(linears: dict[str, nn.Module], statistics: dict[str, InputStatistics]) -> None:
        found.update(statistics)
        for linear in linears.values():
            halve(linear)

    walk_blocks(model, sequences(), visit, gram=True, propagate="dense")
    dense, inputs = tiny_model(family), {}
    for name, linear in prunable_linears(dense).items():
        linear.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].flatten(0, -2)}))
    dense(torch.as_tensor(sequences().astype(np.int64)))
    for name, x in inputs.items():
        expected = x.double().T @ x.double()
        torch.testing.assert_close(found[name].gram.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


class OlderBlock(nn.Module):
    """Block that returns a tuple and expects its mask by position."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(8, 8), scale

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor, *, shift: dict) -> tuple:
        return hidden_states + self.scale * self.inner(hidden_states * mask + shift["by"]), "weights"


class OlderModel(nn.Module):
    """Model whose blocks have different arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(50, 8), nn.ModuleList(OlderBlock(0.5) for _ in range(3))

    def forward(self, tokens: torch.Tensor, use_cache: bool) -> torch.Tensor:
        states = self.embed(tokens)
        for index, block in enumerate(self.blocks):
            outputs = block(states, torch.full((1, tokens.shape[1], 1), index + 1.0), shift={"by": index})
            states = outputs[0]
            assert outputs[1] == "weights" and states.shape == (*tokens.shape, 8)
        return states


def test_blocks_that_give_tuples_and_take_arguments_by_position(sequences: Callable) -> None:
    torch.manual_seed(0)
    model = OlderModel().eval()
    with torch.no_grad():
        expected = brute_force(copy.deepcopy(model), sequences())
    for name, statistics in walk(model, sequences()).items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(statistics.gram.double(), expected[name], rtol=1e-4, atol=1e-5 * scale)


def test_no_sequences_are_refused(tiny_model: Callable, sequences: Callable) -> None:
    with pytest.raises(InputError, match="no calibration sequences"):
        walk_blocks(tiny_model(), sequences(0), lambda linears, statistics: None)


def test_a_layer_that_takes_no_part_is_named(tiny_model: Callable, sequences: Callable) -> None:
    model = tiny_model()
    model.model.layers[1].unused = nn.Linear(24, 24)
    with pytest.raises(InputError, match="model.layers.1.unused is not part"):
        walk_blocks(model, sequences(), lambda linears, statistics: None)
