"""Greedy generation with a cache: tokens equal to those without one, at every call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.inference.generation import Generation, Seconds, random_prompt, speed_quantities

FAMILIES = ("qwen2", "llama", "gemma3_text", "qwen3", "opt", "gpt2")


@torch.no_grad()
def without_cache(model: nn.Module, tokens: Tensor, new_tokens: int) -> Tensor:
    for _ in range(new_tokens):
        logits = model(input_ids=tokens, use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens[:, -new_tokens:]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_the_most_likely_ones(family: str, tiny_model: Callable) -> None:
    model = tiny_model(family)
    tokens = random_prompt(model, 3, 7)
    generation = Generation(model, tokens, 9)
    expected = without_cache(model, tokens, 9)
    for _ in range(2):
        seconds = generation()
        assert torch.equal(generation.new, expected)
        assert seconds.prefill > 0 and seconds.decode > 0
        assert seconds.total == seconds.prefill + seconds.decode


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3_text", "qwen3", "gpt2"])
def test_a_step_by_its_position_alone_gives_the_same(family: str, tiny_model: Callable) -> None:
    """A captured step depends on tensors alone: Python's numbers would stay as they were at the capture."""
    model = tiny_model(family, **({"sliding_window": 32} if family == "gemma3_text" else {}))
    tokens = random_prompt(model, 2, 5)
    generation = Generation(model, tokens, 6)
    with torch.inference_mode():
        generation._generate(generation._step)
        expected = generation.new
        generation._generate(generation._step_by_position)
    assert torch.equal(generation.new, expected)


def test_first_logits_are_those_of_the_model(tiny_model: Callable) -> None:
    model = tiny_model("llama")
    tokens = random_prompt(model, 2, 5)
    longer = torch.cat([tokens, tokens[:, :1]], 1)
    logits = model(input_ids=longer).logits[:, -2:].transpose(0, 1)
    generation = Generation(model, tokens, 2)
    for _ in range(2):
        torch.testing.assert_close(generation.first_logits(), logits)


def test_generations_can_share_a_cache(tiny_model: Callable) -> None:
    one, other = tiny_model("gemma3_text"), tiny_model("gemma3_text", seed=1)
    tokens = random_prompt(one, 2, 7)
    first = Generation(one, tokens, 6)
    second = Generation(other, tokens, 6, cache=first.cache)
    for _ in range(2):
        for generation, model in ((first, one), (second, other)):
            generation()
            assert torch.equal(generation.new, without_cache(model, tokens, 6))


def test_a_failed_capture_is_reported_in_one_line(
    tiny_model: Callable, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(torch.cuda, "Stream", fails)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    model = tiny_model("qwen2")
    tokens = random_prompt(model, 2, 4)
    generation = Generation(model, tokens, 3, "a model")
    generation._capture_pending = True  # as on a GPU
    for _ in range(2):
        generation()
        assert torch.equal(generation.new, without_cache(model, tokens, 3))
    assert capsys.readouterr().out == (
        "a model: decoding is not captured in a CUDA graph (operation not permitted when stream is capturing)\n"
    )


def test_prompts_are_the_same_every_time(tiny_model: Callable) -> None:
    model = tiny_model("qwen2")
    one, other = random_prompt(model, 2, 4), random_prompt(model, 2, 4)
    assert torch.equal(one, other) and one.shape == (2, 4) and int(one.max()) < 50
    assert not torch.equal(one, random_prompt(model, 2, 4, seed=1))


def test_more_tokens_than_positions(tiny_model: Callable) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match=r"a prompt of 60 tokens and 5 new ones need 65 positions; the model has 64"):
        Generation(model, random_prompt(model, 1, 60), 5)


def test_the_speedup_compares_generations_of_the_same_turn() -> None:
    dense = [Seconds(1.0, 3.0), Seconds(1.0, 7.0), Seconds(2.0, 14.0)]
    sparse = [Seconds(1.0, 1.0), Seconds(1.0, 3.0), Seconds(3.0, 5.0)]
    found = speed_quantities(16, sparse, dense)
    assert {name: one["median"] for name, one in found.items()} == {
        "tokens_per_second": 4.0,
        "prefill_seconds": 1.0,
        "decode_seconds": 3.0,
        "speedup": 2.0,
    }
    assert (found["speedup"]["low"], found["speedup"]["high"]) == (2.0, 2.0)
