"""Saving of packed models as model folders of transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from patch.errors import InputError
from patch.files.io import own_directory, read_json_object
from patch.inference.integrations.transformers_quantizer import describe_packed
from patch.inference.packed_config import parse_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Files that `save` may write; a folder with any other file is not replaced.
SAVED = re.compile(
    r"(generation_)?config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)"
    r"|vocab\.(json|txt)|merges\.txt|tokenizer\.model|spiece\.model"
)


def save(model: PreTrainedModel, folder: Path | str, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write a packed model as a folder for `from_pretrained`, atomically.

    The weights are in files of at most one decoder block or tensor. `from_pretrained` holds one file in memory beside
    the model, so that it needs little more than the model.

    Args:
        model: a model converted by `convert`, or loaded from such a folder.
        folder: a folder that does not exist yet, is empty, or holds only an earlier save, which is replaced.
        tokenizer: tokenizer to save beside the model, or None.

    Raises:
        InputError: the model has no packed layer or a damaged one, or the folder holds anything else.
    """
    describe_packed(model)
    size = _largest_block(model)
    with own_directory(folder, "save", _is_saved) as temporary:
        write_model(model, temporary, f"save to {folder}", max_shard_size=size)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)


def write_model(model: PreTrainedModel, temporary: Path, task: str, **options: Any) -> None:
    """Write a model to a temporary folder with `save_pretrained` and its ``options``; messages begin with ``task``.

    Raises:
        InputError: transformers refuses to save the model.
    """
    try:
        model.save_pretrained(temporary, **options)
    except ValueError as error:  # a generation configuration that contradicts itself
        raise InputError(f"{task}: the model cannot be saved: {' '.join(str(error).split())}") from None


def _largest_block(model: nn.Module) -> int:
    """Return the bytes of the largest decoder block."""
    blocks = [block for each in model.modules() if isinstance(each, nn.ModuleList) for block in each]
    return max(sum(tensor.nbytes for tensor in block.state_dict().values()) for block in blocks)


def _is_saved(path: Path) -> bool:
    """Return whether `save` may have written a file: by its name, and the configuration beside it."""
    if not SAVED.fullmatch(path.name) or path.is_symlink() or not path.is_file():
        return False
    try:
        parse_config(read_json_object(path.with_name("config.json")).get("quantization_config"))
    except InputError:
        return False
    return True
