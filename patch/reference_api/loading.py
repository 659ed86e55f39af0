"""Loading of a model from the hub or a folder, with its lm-eval wrapper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from patch.errors import InputError, suggest
from patch.hub.errors import hub_errors
from patch.models.loading import read_pretrained

# Further arguments of `from_pretrained`, for the model and its tokenizer.
OPTIONS = ("attn_implementation", "cache_dir", "revision", "subfolder")


def load_causal_lm(
    name: str, local_files_only: bool, token: str | None, dtype: Any, device: Any, options: dict[str, Any]
) -> PreTrainedModel:
    """Load a causal language model, frozen and in evaluation mode, on ``device``.

    The model keeps ``options`` in its attribute `patch_options`.

    Raises:
        InputError: the model is missing, damaged or not accessible, or an option, dtype or device is invalid.
    """
    for key in options:
        if key not in OPTIONS:
            raise InputError(f"get_llm has no argument `{key}`; {suggest(key, ['dtype', 'device', *OPTIONS])}")
    dtype = _dtype(dtype)
    with hub_errors(f"model {name!r} cannot be loaded", token):
        access = {"token": token or None, "local_files_only": local_files_only}
        model = read_pretrained(name, f"model {name!r}", dtype=dtype, **access, **options)
    model.patch_options = dict(options)
    return model.to(_device(device)).eval().requires_grad_(False)


def load_tokenizer(
    name: str, local_files_only: bool, token: str | None, options: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        InputError: the tokenizer cannot be loaded.
    """
    options = {key: value for key, value in options.items() if key != "attn_implementation"}
    with hub_errors(f"tokenizer of {name!r} cannot be loaded", token):
        return AutoTokenizer.from_pretrained(
            name, token=token or None, local_files_only=local_files_only, trust_remote_code=False, **options
        )


def _dtype(dtype: Any) -> Any:
    found = dtype if isinstance(dtype, torch.dtype) or dtype == "auto" else getattr(torch, str(dtype), None)
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"`dtype` is {dtype!r}; use 'auto', 'float32', 'bfloat16' or 'float16'")
    return found


def _device(device: Any) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"`device` is {device!r}; use 'cpu', 'cuda' or 'cuda:0'") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"`device` is {device!r}, but torch finds {torch.cuda.device_count()} GPUs")
    return found


def local_name(name: Any) -> str:
    """Return a model's name or path as a string.

    Raises:
        InputError: the name is empty or of another type.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise InputError(f"`model_name` is {name!r}; give an id of the hub, `owner/name`, or a folder")
    return str(name)
