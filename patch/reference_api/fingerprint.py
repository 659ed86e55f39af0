"""Short names of contents, by which a file knows what it was made from."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase


def digest_of(value: Any) -> str:
    """Of anything that JSON can hold."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Of all parameters, their names, shapes and types; the device does not matter."""
    digest = blake2b(digest_size=12)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of its vocabulary and special tokens."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest_of([sorted(tokenizer.get_vocab().items()), special])
