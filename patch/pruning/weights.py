"""Files of updated or fine-tuned weights, written before the evaluation of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.files.tensors import load_tensors, save_tensors
from patch.models.loading import weight_matrix
from patch.pruning.weights_header import FORMAT, WeightsHeader


def save_weights(
    path: Path | str, linears: Mapping[str, nn.Module], digest: str, cost: Mapping[str, float] | None = None
) -> None:
    """Write the weights of ``linears`` atomically, with the digest of their settings and the cost of fine-tuning.

    Raises:
        InputError: a weight is not finite.
    """
    weights = {name: weight_matrix(linear).detach() for name, linear in linears.items()}
    _check_finite(path, weights)
    save_tensors(path, FORMAT, WeightsHeader(digest=digest, cost=cost or {}).model_dump(), weights)


def read_weights(path: Path | str, linears: Mapping[str, nn.Module], digest: str | None = None) -> dict[str, Tensor]:
    """Read and verify the `[out, in]` weights in a file for ``linears``, by name.

    Args:
        path: path of the file.
        linears: layers of the model, by name.
        digest: required digest of the settings; None for any.

    Raises:
        InputError: the file is missing, damaged or of another model or other settings, or a weight is not finite.
    """
    header, weights = load_tensors(path, FORMAT, "weights")
    if digest is not None and header.get("digest") != digest:
        raise InputError(f"weights {path}: made with other settings; remove them to make them again")
    expected = {name: (weight_matrix(linear).shape, linear.weight.dtype) for name, linear in linears.items()}
    if {name: (weight.shape, weight.dtype) for name, weight in weights.items()} != expected:
        raise InputError(f"weights {path}: the layers are not those of the model; they belong to another one")
    _check_finite(path, weights)
    return weights


def load_weights(path: Path | str, linears: Mapping[str, nn.Module], digest: str | None = None) -> None:
    """Copy weights into ``linears``; arguments and errors as in `read_weights`."""
    weights = read_weights(path, linears, digest)
    with torch.no_grad():
        for name, linear in linears.items():
            weight_matrix(linear).copy_(weights[name])


def _check_finite(path: Path | str, weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise InputError(f"weights {path}: {name} has weights that are not finite")
