"""Updated weights on disk, on their way from the pruning to the evaluation of a cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.io import atomic_file
from patch.models import weight_matrix


def save_weights(path: Path | str, linears: Mapping[str, nn.Module], digest: str) -> None:
    """Write the weights of ``linears``, atomically, with the digest of the settings that made them."""
    from safetensors.torch import save_file

    weights = {name: weight_matrix(linear).detach().cpu().contiguous() for name, linear in linears.items()}
    with atomic_file(path) as temporary:
        save_file(weights, temporary, metadata={"digest": digest})


def weights_digest(path: Path | str) -> str | None:
    """Digest in a file of `save_weights`; None where there is no such file or it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None


def read_weights(path: Path | str, linears: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The `[out, in]` weights in a file for ``linears``, by name.

    Raises:
        InputError: the file is missing or damaged, or is of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights {path}: missing, truncated or not a safetensors file ({error})") from None
    shapes = {name: weight_matrix(linear).shape for name, linear in linears.items()}
    if {name: weight.shape for name, weight in weights.items()} != shapes:
        raise InputError(f"weights {path}: the layers are not those of the model; they belong to another one")
    return weights


def load_weights(path: Path | str, linears: Mapping[str, nn.Module]) -> None:
    """Copy weights into ``linears``.

    Raises:
        InputError: as `read_weights`.
    """
    weights = read_weights(path, linears)
    with torch.no_grad():
        for name, linear in linears.items():
            weight_matrix(linear).copy_(weights[name])
