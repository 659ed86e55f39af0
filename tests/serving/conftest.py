"""A pretrained model from a package under sparse masks: as a packed folder, and masked and dense as the reference."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from patch.inference import convert, save
from patch.masks.packed import MaskSet, apply_masks
from patch.models.loading import load_tokenizer, prunable_linears
from patch.pipeline.config.load import load_experiment
from patch.pipeline.runs.stage_settings import ModelSettings
from patch.pipeline.stages.fetch import run_fetch_model
from patch.quantization.model import quantize_model
from tests.serving.server import ENVIRONMENT

CONFIG, NAME = "config/smollm2-135m.yaml", "smollm2-135m"
TILE = 64


@dataclass
class Case:
    """Packed model folder and its reference.

    Attributes:
        folder: the packed model with its tokenizer.
        reference: the masked dense model in transformers.
        unmasked: the model without masks.
        tokenizer: tokenizer of all.
    """

    folder: Path
    reference: PreTrainedModel
    unmasked: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@pytest.fixture(scope="session", autouse=True)
def _environment() -> None:
    assert (ENVIRONMENT / "bin/vllm").exists(), "the serving environment is missing; run `make test-serving`"


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the pretrained model."""
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    source = load_experiment(CONFIG).models[NAME].source
    run_fetch_model(ModelSettings(upstream="", source=source), out=folder)
    return folder


def magnitude_masks(model: PreTrainedModel, sparsity: int, dense_layers: str) -> MaskSet:
    """Return masks that keep the two largest of every four weights in random sparse tiles; 50 % is 2:4 everywhere."""
    generator = torch.Generator().manual_seed(0)
    masks, tiles = {}, {}
    for name, linear in prunable_linears(model).items():
        weight = linear.weight.detach().float()
        rows, columns = (side // TILE for side in weight.shape)
        dense = torch.zeros(rows * columns, dtype=torch.bool)
        dense[torch.randperm(len(dense), generator=generator)[: round((1 - sparsity / 50) * len(dense))]] = True
        if dense_layers and dense_layers in name:
            dense[:] = True
        tiles[name] = dense.view(rows, columns)
        whole = tiles[name].repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
        # Weights of four bits are often equal in size; a stable order picks exactly two.
        order = weight.abs().view(*weight.shape[:1], -1, 4).argsort(dim=-1, descending=True, stable=True).argsort(-1)
        masks[name] = (order < 2).view(weight.shape) | whole
    return MaskSet(masks, "2:4") if sparsity == 50 else MaskSet(masks, "hybrid", tiles, TILE)


def make_case(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sparsity: int,
    folder: Path,
    dense_layers: str = "",
    four_bits: bool = False,
) -> Case:
    """Pack a model under masks; layers whose name contains a non-empty ``dense_layers`` stay dense."""
    masks = magnitude_masks(model, sparsity, dense_layers)
    reference = copy.deepcopy(model)
    apply_masks(reference, masks)
    quantized = quantize_model(reference, 4, TILE) if four_bits else None
    save(convert(copy.deepcopy(model), masks, quantized), folder, tokenizer)
    return Case(folder, reference, model, tokenizer)


@pytest.fixture(scope="session")
def tokenizer(pretrained: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(pretrained)


def random_llama(vocabulary: int, mlp: int) -> PreTrainedModel:
    """Return a random Llama with biases and one key-value head, which several processes share."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=mlp,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        # Large enough that probabilities differ.
        initializer_range=0.2,
        attention_bias=True,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    return model


@pytest.fixture(scope="session")
def small(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return random_llama(len(tokenizer), 512)


def complete(client: openai.OpenAI, prompts: list[list[int]], new: int) -> list[tuple[list[int], list[float]]]:
    """Return the greedy tokens after each prompt, and their log-probabilities; the prompts are one request."""
    answer = client.completions.create(
        model="model",
        prompt=prompts,
        max_tokens=new,
        temperature=0,
        logprobs=0,
        extra_body={"ignore_eos": True, "return_tokens_as_token_ids": True},
    )
    found = [choice.logprobs for choice in sorted(answer.choices, key=lambda choice: choice.index)]
    return [([int(t.removeprefix("token_id:")) for t in each.tokens], each.token_logprobs) for each in found]


def log_probabilities(model: PreTrainedModel, prompt: list[int], new: list[int]) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of given tokens after a prompt, and the largest ones at their positions."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1].double()
    found = logits.log_softmax(-1)
    return found.gather(1, torch.tensor(new)[:, None])[:, 0], found.amax(-1)


def check_answers(
    case: Case, client: openai.OpenAI, prompts: list[list[int]], new: int, tolerance: float, quantile: float = 1.0
) -> None:
    """Compare greedy answers with the reference: log-probabilities, and that each token is the most probable one.

    A token that is less probable than the reference's by at most the tolerance counts as the most probable one. The
    tolerance bounds a quantile of the differences of all tokens, by default the largest one.
    """
    answers = complete(client, prompts, new)
    assert len(answers) == len(prompts)
    differences, shortfalls = [], []
    for prompt, (tokens, found) in zip(prompts, answers, strict=True):
        assert len(tokens) == new
        expected, largest = log_probabilities(case.reference, prompt, tokens)
        differences.append((torch.tensor(found).double() - expected).abs())
        shortfalls.append(largest - expected)
    assert torch.cat(differences).quantile(quantile) <= tolerance
    assert torch.cat(shortfalls).quantile(quantile) <= tolerance
