"""A pretrained model from a package under sparse masks: as a packed folder, and masked and dense as the reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patch.inference import convert, save
from patch.masks.packed import MaskSet, apply_masks
from patch.models.loading import load_model, load_tokenizer, prunable_linears
from patch.pipeline.config.load import load_experiment
from patch.pipeline.runs.stage_settings import ModelSettings
from patch.pipeline.stages.fetch import run_fetch_model
from tests.serving.server import ENVIRONMENT

CONFIG, NAME = "config/smollm2-135m.yaml", "smollm2-135m"
TILE = 64


@dataclass
class Case:
    """Packed model folder and its reference.

    Attributes:
        folder: the packed model.
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


def magnitude_masks(model: PreTrainedModel, sparsity: int) -> MaskSet:
    """Return masks that keep the two largest of every four weights in random sparse tiles; 50 % is 2:4 everywhere."""
    generator = torch.Generator().manual_seed(0)
    masks, tiles = {}, {}
    for name, linear in prunable_linears(model).items():
        weight = linear.weight.detach().float()
        rows, columns = (side // TILE for side in weight.shape)
        dense = torch.zeros(rows * columns, dtype=torch.bool)
        dense[torch.randperm(len(dense), generator=generator)[: round((1 - sparsity / 50) * len(dense))]] = True
        tiles[name] = dense.view(rows, columns)
        whole = tiles[name].repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
        # Weights of four bits are often equal in size; a stable order picks exactly two.
        order = weight.abs().view(*weight.shape[:1], -1, 4).argsort(-1, descending=True, stable=True).argsort(-1)
        masks[name] = (order < 2).view(weight.shape) | whole
    return MaskSet(masks, "2:4") if sparsity == 50 else MaskSet(masks, "hybrid", tiles, TILE)


@pytest.fixture(scope="session")
def case(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Case]:
    """Return a function of a sparsity in percent and a dtype that makes a packed folder and its reference."""

    def make(sparsity: int, dtype: str) -> Case:
        model, tokenizer = load_model(pretrained, dtype), load_tokenizer(pretrained)
        masks = magnitude_masks(model, sparsity)
        reference = copy.deepcopy(model)
        apply_masks(reference, masks)
        folder = tmp_path_factory.mktemp("packed") / "model"
        save(convert(copy.deepcopy(model), masks), folder)
        tokenizer.save_pretrained(folder)
        return Case(folder, reference, model, tokenizer)

    return make


def greedy(model: PreTrainedModel, prompt: list[int], new: list[int]) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of given tokens after a prompt, and the largest ones at their positions."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1].double()
    found = logits.log_softmax(-1)
    return found.gather(1, torch.tensor(new)[:, None])[:, 0], found.amax(-1)
