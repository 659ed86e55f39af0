"""A tiny model with a tokenizer for lm-eval."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from patch.data.tokenizer import train_tokenizer

WORDS = ["lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "elit", "sed", "eiusmod", "tempor", "ut", "labore"]


@pytest.fixture(scope="package")
def words() -> list[str]:
    """Return the words of all texts."""
    return WORDS


@pytest.fixture(scope="package")
def tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer."""
    return train_tokenizer([" ".join(WORDS)], 320)


@pytest.fixture(scope="package")
def model(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """Return a random model with a context of 256 tokens."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=256, **sizes)
    return Qwen2ForCausalLM(config).eval()
