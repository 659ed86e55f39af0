"""Tests of the chunked cross-entropy against plain softmax and autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patch.data.tokenization import Separator
from patch.learning import loss_chunks
from patch.learning.document_masking import DocumentMasking
from patch.learning.objective import ChunkedCrossEntropy, cross_entropy, frozen_output_layer

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def obvious(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weights: Tensor
) -> tuple[float, Tensor]:
    """Return the loss and the gradient of the hidden states by softmax and autograd in float64."""
    states = hidden.detach().double().requires_grad_()
    logits = states @ weight.double().T + (0.0 if bias is None else bias.double())
    chances = torch.softmax(logits, 1)[torch.arange(len(targets)), targets]
    loss = -(token_weights.double() * chances.log()).sum()
    (gradient,) = torch.autograd.grad(3 * loss, states)
    return float(loss.detach()), gradient


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, biased: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, width, words = (int(torch.randint(1, 60, (1,), generator=generator)) for _ in range(3))
    monkeypatch.setitem(loss_chunks.CHUNK, "cpu", [1, 3 * words, 7 * words + 1, 1 << 20][seed])
    monkeypatch.setattr(loss_chunks, "FEWEST_TOKENS", 1)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    # In fp32 far apart, so that one that takes no maximum off overflows; in bf16 they would be too roughly rounded.
    apart = 40 if dtype == torch.float32 else 1
    weight = (apart * torch.randn(words, width, generator=generator) / width**0.5).to(dtype)
    bias = torch.randn(words, generator=generator).to(dtype) if biased else None
    targets = torch.randint(words, (rows,), generator=generator)
    token_weights = torch.rand(rows, generator=generator) * (torch.rand(rows, generator=generator) < 0.7)
    loss = ChunkedCrossEntropy.apply(hidden, weight, bias, targets, token_weights)
    (3 * loss).backward()
    expected, gradient = obvious(hidden, weight, bias, targets, token_weights)
    tolerance = TOLERANCES[dtype]
    assert float(loss.detach()) == pytest.approx(expected, rel=tolerance, abs=tolerance)
    scale = max(1.0, float(gradient.abs().max()))
    torch.testing.assert_close(hidden.grad.double(), gradient, rtol=tolerance, atol=tolerance * scale)
    assert loss.dtype == torch.float32 and hidden.grad.dtype == dtype


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text", "opt", "gpt2"])
@pytest.mark.parametrize("parted", [False, True])
def test_a_model_gives_what_its_logits_give(tiny_model: Callable, family: str, parted: bool) -> None:
    model = tiny_model(family).requires_grad_(False)
    tokens = torch.randint(1, 50, (3, 11), generator=torch.Generator().manual_seed(5))
    tokens[0, 4] = tokens[2, 0] = tokens[2, 9] = 1
    cut = DocumentMasking(model, Separator(1)) if parted else None
    assert frozen_output_layer(model, tokens) is model.get_output_embeddings()
    states: list[Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda layer, inputs, output: output.requires_grad_())
    model.get_input_embeddings().register_forward_hook(lambda layer, inputs, output: states.append(output))
    loss = cross_entropy(model, tokens, cut)
    (gradient,) = torch.autograd.grad(loss, states[-1])
    starts = cut.starts(tokens) if cut else torch.zeros_like(tokens, dtype=torch.bool)
    arguments = cut.arguments(starts) if cut else {}
    logits = model(tokens, use_cache=False, **arguments).logits.double()
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    inside = (~starts[:, 1:]).double()
    expected = ((each * inside).sum(1) / inside.sum(1).clamp(min=1)).mean()
    (expected_gradient,) = torch.autograd.grad(expected, states[-1])
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert "forward" not in vars(model.get_output_embeddings())


def test_logits_that_are_changed_afterwards(tiny_model: Callable) -> None:
    """The loss is that of the changed logits."""

    class Capped(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def get_output_embeddings(self) -> nn.Module:
            return self.model.get_output_embeddings()

        def forward(self, tokens: Tensor, **arguments: object):  # noqa: ANN202
            output = self.model(tokens, **arguments)
            output.logits = 0.5 * torch.tanh(output.logits)
            return output

    model, tokens = Capped(tiny_model("llama").requires_grad_(False)), torch.tensor([[5, 6, 7, 8]])
    assert frozen_output_layer(model, tokens) is None
    logits = model(tokens).logits
    expected = F.cross_entropy(logits[0, :-1], tokens[0, 1:])
    assert float(cross_entropy(model, tokens)) == pytest.approx(float(expected), rel=1e-6)


def test_a_head_that_is_learned(tiny_model: Callable) -> None:
    model = tiny_model("llama").requires_grad_(True)
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert frozen_output_layer(model, tokens) is None
    cross_entropy(model, tokens).backward()
    assert model.get_output_embeddings().weight.grad.abs().max() > 0
