"""Tensor parallelism of `vllm serve`, and folders that it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.serving.conftest import check_answers, make_case, random_llama
from tests.serving.server import ServerFailed, serving

OPTIONS = ("--dtype", "float32", "--max-model-len", "128", "--enforce-eager", "--generation-config", "vllm")
TWO = ("--tensor-parallel-size", "2", *OPTIONS)


@pytest.fixture(scope="module")
def folder(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a packed folder to damage a copy of."""
    return make_case(small, tokenizer, 45, tmp_path_factory.mktemp("packed") / "model").folder


@pytest.mark.parametrize("options", [OPTIONS, TWO], ids=["one process", "two processes"])
def test_biases_repeated_heads_and_a_dense_layer_among_packed_ones(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, options: tuple[str, ...]
):
    """Two processes keep half of the query heads each and both keep the only key-value head."""
    case = make_case(small, tokenizer, 45, tmp_path / "model", dense_layers="layers.1.self_attn.k_proj")
    description = json.loads((case.folder / "config.json").read_text())["quantization_config"]["layers"]
    assert len(description) == 13 and "model.layers.1.self_attn.k_proj" not in description
    torch.manual_seed(0)
    prompts = torch.randint(len(tokenizer), (3, 20)).tolist()
    with (
        serving(case.folder, tmp_path / "log.txt", *options) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client,
    ):
        check_answers(case, client, prompts, 12, 1e-3)


def newer(config: dict[str, Any]) -> None:
    config["quantization_config"]["format"] = 99


def larger(config: dict[str, Any]) -> None:
    config["quantization_config"]["layers"]["model.layers.0.mlp.up_proj"]["sparse_tiles"] -= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (newer, "format 99 is newer than 1"),
        (larger, "model.layers.0.mlp.up_proj.values has the shape"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
):
    copied = tmp_path / "model"
    copied.mkdir()
    for path in folder.iterdir():
        (copied / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (copied / "config.json").unlink()
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ServerFailed, match=message), serving(copied, tmp_path / "log.txt", *OPTIONS):
        pass


def test_tensor_parallelism_that_would_cut_tiles_is_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    """An MLP of 192 has three tiles, which two processes cannot share."""
    case = make_case(random_llama(len(tokenizer), 192), tokenizer, 45, tmp_path / "model")
    # The process that stops first names its outputs, and vLLM stops the other.
    outputs = "outputs (0 to 96|96 to 192) would cut tiles of 64"
    message = f"model.layers.0.mlp.gate_proj: with a tensor parallel size of 2, {outputs}"
    with pytest.raises(ServerFailed, match=message), serving(case.folder, tmp_path / "log.txt", *TWO):
        pass
