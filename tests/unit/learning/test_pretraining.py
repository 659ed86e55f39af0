"""Tests of the training of small models: progress, reproducibility and resumption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patch.errors import InputError
from patch.learning import pretraining as training
from patch.learning.pretraining import new_model, train
from patch.models.model_settings import TrainedModel


class Tokenizer:
    """Stub of a tokenizer with the attributes that training reads."""

    bos_token_id, eos_token_id, pad_token_id = 0, 1, 2

    def __len__(self) -> int:
        return 50


@pytest.fixture
def source(raw_config: dict) -> Callable[..., TrainedModel]:
    """Return a function that describes a small model of a family; keywords change the training run."""

    def make(family: str = "qwen2", config: dict | None = None, **run: Any) -> TrainedModel:
        sizes = raw_config["models"]["qwen"]["source"]["config"] | {"max_position_embeddings": 64} | (config or {})
        defaults = {"steps": 12, "batch_size": 4, "seqlen": 12, "warmup_steps": 2}
        return TrainedModel(architecture=family, config=sizes, corpus="text", training=defaults | run)

    return make


def losses(curve: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in curve.read_text().splitlines()]


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3_text"])
def test_every_weight_is_trained_and_the_loss_falls(family: str, source: Callable, tmp_path: Path) -> None:
    settings = source(family, steps=40)
    start = {name: value.clone() for name, value in new_model(settings, Tokenizer()).state_dict().items()}
    # Each sequence repeats four tokens in order: easy to predict.
    sequences = np.tile(np.arange(8)[:, None] + np.arange(4), 3).astype(np.uint16)
    model = train(settings, Tokenizer(), sequences, tmp_path / "run", tmp_path / "c.jsonl")
    assert not model.training
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32 and value.isfinite().all()
        assert not torch.equal(value, start[name]), f"{name} did not move"
    curve = losses(tmp_path / "c.jsonl")
    assert curve[0] == pytest.approx(np.log(50), abs=1.0) and curve[-1] < curve[0] - 1


def test_weights_are_a_function_of_the_seed(source: Callable) -> None:
    one, same, other = (new_model(source(seed=seed), Tokenizer()).state_dict() for seed in (0, 0, 1))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


def test_a_crash_changes_nothing(
    source: Callable, sequences: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings = sequences(7), source()
    whole = train(settings, Tokenizer(), data, tmp_path / "whole", tmp_path / "whole.jsonl").state_dict()
    real, often = training.batch_indices, training.run_steps

    def run_steps(*arguments: Any) -> None:
        # The checkpoint interval stands at its place among the arguments of the loop.
        often(*arguments[:6], 1e-9, *arguments[7:])

    def dies(step: int, *rest: Any) -> np.ndarray:
        if step == 5:
            raise ConnectionError
        return real(step, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(training, "run_steps", run_steps)
        patched.setattr(training, "batch_indices", dies)
        with pytest.raises(ConnectionError):
            train(settings, Tokenizer(), data, tmp_path / "run", tmp_path / "run.jsonl")
    assert (tmp_path / "run" / "step-00000005.pt").exists()
    resumed = train(settings, Tokenizer(), data, tmp_path / "run", tmp_path / "run.jsonl").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert losses(tmp_path / "run.jsonl") == losses(tmp_path / "whole.jsonl")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"hiden_size": 3}, "unknown key `config.hiden_size`.*did you mean `hidden_size`"),
        ({"vocab_size": 7}, "`config.vocab_size`.*tokenizer"),
    ],
)
def test_bad_configurations_of_a_family(config: dict, expected: str, source: Callable) -> None:
    with pytest.raises(InputError, match=expected):
        new_model(source(config=config), Tokenizer())
