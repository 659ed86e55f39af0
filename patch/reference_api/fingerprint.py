"""Digests of models, tokenizers and settings, stored in files to identify their inputs."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase


def digest_of(value: Any) -> str:
    """Return the digest of a JSON value."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Return the digest of all parameters with their names, shapes and dtypes, independent of the device."""
    digest = blake2b(digest_size=12)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the digest of a tokenizer's vocabulary and special tokens."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest_of([sorted(tokenizer.get_vocab().items()), special])
