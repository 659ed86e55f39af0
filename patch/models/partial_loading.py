"""Loading of parts of a model: all but some weights, and some rows of a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.hub.errors import library_errors
from patch.models.loading import check_weights, load_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StoredWeights:
    """Parameters of a model in the safetensors files of its folder, read in part.

    Args:
        folder: folder with safetensors files.
        model: the model, by whose prefix the names in the files may differ from its own.

    Raises:
        InputError: the folder has no safetensors file, or a damaged one.
    """

    def __init__(self, folder: Path | str, model: PreTrainedModel) -> None:
        from safetensors import safe_open

        check_weights(folder)
        self.folder, self._prefix = folder, f"{model.base_model_prefix}."
        with library_errors(f"model folder {folder} cannot be loaded"):
            files = [safe_open(path, "pt") for path in sorted(Path(folder).glob("*.safetensors"))]
            self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a mapping

    def part(self, name: str, shape: torch.Size, dim: int = 0, span: range | None = None) -> Tensor:
        """Return a parameter, or the rows (``dim`` 0) or columns (1) of ``span`` in it, in the memory of the file.

        Raises:
            InputError: no file has it, it has another shape, or its numbers are not of a floating-point type.
        """
        stored = next((key for key in (name, name.removeprefix(self._prefix)) if key in self._files), None)
        if stored is None:
            raise InputError(f"model folder {self.folder}: its files lack the weight {name}")
        whole = self._files[stored].get_slice(stored)
        kind, found = whole.get_dtype(), whole.get_shape()
        if not kind.startswith(("F", "BF")):
            raise InputError(f"model folder {self.folder}: {name} has the type {kind}; expected floating-point numbers")
        if found != list(shape):
            raise InputError(f"model folder {self.folder}: {name} has the shape {found}; expected {list(shape)}")
        if span is None:
            return whole[:]
        if not span:
            return torch.empty([0 if number == dim else size for number, size in enumerate(shape)])
        return whole[span.start : span.stop] if dim == 0 else whole[:, span.start : span.stop]


def load_without(
    folder: Path | str, dtype: str, device: str, skipped: Callable[[PreTrainedModel], Sequence[nn.Parameter]]
) -> PreTrainedModel:
    """Load a causal language model from a local folder, frozen and in evaluation mode, without some parameters.

    Args:
        folder: folder with safetensors files.
        dtype: data type of the parameters.
        device: device of the parameters and buffers.
        skipped: returns the parameters of a model that are not read and stay on the `meta` device.

    Raises:
        InputError: the folder holds no model, one that is damaged or lacks weights, or one that needs its own code.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    # Buffers that no file has, such as frequencies of rotary embeddings, are computed.
    with library_errors(f"model folder {folder} cannot be loaded"), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    model.tie_weights()
    left, stored = {id(parameter) for parameter in skipped(model)}, StoredWeights(folder, model)
    for name, parameter in list(model.named_parameters()):
        if id(parameter) not in left:
            module, _, attribute = name.rpartition(".")
            value = stored.part(name, parameter.shape).to(device, parameter.dtype, copy=True)
            setattr(model.get_submodule(module), attribute, nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model.eval().requires_grad_(False)
