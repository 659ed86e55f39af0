"""Tests of perplexity against a slow float64 version."""

import math

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from patch.errors import InputError
from patch.evaluation import perplexity as module
from patch.evaluation.perplexity import perplexity


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def sequences():
    return np.random.default_rng(0).integers(0, 97, (7, 12)).astype(np.uint16)


def slow(model, sequences) -> tuple[float, float, list[float]]:
    means = []
    for sequence in sequences:
        logits = model.double()(torch.tensor([sequence.tolist()])).logits[0].detach().numpy()
        losses = []
        for position in range(len(sequence) - 1):
            row = logits[position] - logits[position].max()
            losses.append(math.log(np.exp(row).sum()) - row[sequence[position + 1]])
        means.append(np.mean(losses))
    model.float()
    delta = math.exp(np.mean(means)) * np.std(means, ddof=1) / math.sqrt(len(means))
    return math.exp(np.mean(means)), delta, means


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("chunk_logits", [1, 97 * 4, 1 << 24])
def test_agrees_with_float64(model, sequences, batch_size, chunk_logits, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_LOGITS", chunk_logits)
    metric = perplexity(model, sequences, batch_size)
    value, stderr, means = slow(model, sequences)
    assert metric.value == pytest.approx(value, rel=1e-5)
    assert metric.values == pytest.approx(tuple(means), rel=1e-5)
    # With so few sequences the exponential is not linear, which the bootstrap includes.
    assert metric.stderr == pytest.approx(stderr, rel=0.1)
    assert metric.samples == 7 and metric.chance is None
    assert type(metric.value) is float and type(metric.stderr) is float
    assert all(type(value) is float for value in metric.values)


def test_the_same_again(model, sequences):
    assert perplexity(model, sequences, 3) == perplexity(model, sequences, 3)


def test_one_sequence_has_no_error(model, sequences):
    metric = perplexity(model, sequences[:1], 4)
    assert metric.stderr is None and len(metric.values) == 1


def test_nothing_to_predict(model, sequences):
    for empty in (sequences[:0], sequences[:, :1]):
        with pytest.raises(InputError, match="predict nothing"):
            perplexity(model, empty, 4)
