"""Saved packed models: a folder with the configurations, and one file with all tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.files.io import own_directory, read_json
from patch.files.tensors import load_header, load_tensors, save_tensors
from patch.inference.checked import PARTS
from patch.inference.linear import HybridLinear
from patch.inference.packed import PackedWeight
from patch.models.loading import is_linear, load_skeleton, weight_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = "patch-packed-2"
CONTENTS = "packed model"
WEIGHTS = "packed.safetensors"
CONFIG, GENERATION = "config.json", "generation_config.json"


def save(model: PreTrainedModel, folder: Path | str) -> None:
    """Write a model converted by `convert`, atomically.

    Args:
        model: a model with at least one packed layer.
        folder: a folder that does not exist yet, is empty, or holds only an earlier save, which is replaced.

    Raises:
        InputError: the model has no packed layer or a damaged one, or the folder holds anything else.
    """
    packed = {name: layer.packed for name, layer in model.named_modules() if isinstance(layer, HybridLinear)}
    if not packed:
        raise InputError(f"{type(model).__name__} has no packed layer; convert it first, or use save_pretrained")
    layers = {name: {"shape": list(weight.checked.shape), "tile": weight.tile} for name, weight in packed.items()}
    # Tied tensors are listed once. Buffers that a state dict omits, such as those of rotary embeddings, are included,
    # since a model skeleton lacks them.
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with own_directory(folder, "save", _is_saved) as temporary:
        model.config.save_pretrained(temporary)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(temporary)
        header = {"layers": layers, "files": {name: _digest(temporary / name) for name in (CONFIG, GENERATION)}}
        save_tensors(temporary / WEIGHTS, FORMAT, header, {n: t.detach().cpu().clone() for n, t in tensors.items()})


def _is_saved(path: Path) -> bool:
    """Return whether `save` wrote a file, by its name and the weights beside it."""
    if path.name not in (WEIGHTS, CONFIG, GENERATION) or path.is_symlink() or not path.is_file():
        return False
    try:
        load_header(path.with_name(WEIGHTS), FORMAT, CONTENTS)
    except InputError:
        return False
    return True


def _digest(path: Path) -> str | None:
    """Return the hexadecimal SHA-256 of a file, or None if it is missing."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def load(folder: Path | str, device: torch.device | str = "cpu", backend: str | None = None) -> PreTrainedModel:
    """Load a model written by `save` into private memory, frozen and in evaluation mode.

    Args:
        folder: folder of the saved model.
        device: device of the loaded model.
        backend: backend of all packed layers, see `HybridLinear`.

    Raises:
        InputError: a file is missing, truncated, foreign or changed since it was saved, or the files do not match.
    """
    folder = Path(folder)
    path = folder / WEIGHTS
    header, tensors = load_tensors(path, FORMAT, CONTENTS)
    layers, files = header.get("layers"), header.get("files")
    for key, part in (("layers", layers), ("files", files)):
        if not isinstance(part, dict):
            raise InputError(f"{path}: its header is damaged ({key}: {part!r:.99}); save the model again")
    for name in (CONFIG, GENERATION):
        if _digest(folder / name) != files.get(name):
            raise InputError(f"{folder / name}: not the file that was saved with {WEIGHTS}; save the model again")
    with _reading(folder / CONFIG):
        model = load_skeleton(folder)
    _configure_generation(model, folder)
    for name, description in layers.items():
        _put_layer(path, model, name, description, tensors, backend)
    for name, tensor in tensors.items():
        _put_tensor(path, model, name, tensor)
    model.tie_weights()
    missing = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if missing:
        raise InputError(f"{path}: it lacks {missing[0]}; save the model again")
    return model.to(device).eval().requires_grad_(False)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert errors of transformers, which may have any type, into an InputError about a file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path} cannot be read: {type(error).__name__}: {reason}") from None


def _configure_generation(model: PreTrainedModel, folder: Path) -> None:
    """Set the generation configuration of the saved model, if there is one."""
    from transformers import GenerationConfig

    path = folder / GENERATION
    if not path.exists():
        return
    if not isinstance(read_json(path), dict):
        raise InputError(f"{path} cannot be read: expected a JSON object")
    with _reading(path):
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


def _put_layer(
    path: Path, model: nn.Module, name: str, description: Any, tensors: dict[str, Tensor], backend: str | None
) -> None:
    """Replace a linear layer by a packed layer, whose tensors are removed from ``tensors``.

    Raises:
        InputError: names the layer that does not match.
    """
    if not isinstance(description, dict):
        raise InputError(f"{path}: the shape of {name} is damaged ({description!r:.99}); save the model again")
    parts: dict[str, Any] = {part: tensors.pop(f"{name}.{part}", None) for part in PARTS}
    shape, bias = description.get("shape"), tensors.pop(f"{name}.bias", None)
    try:
        packed = PackedWeight(tuple(shape) if isinstance(shape, list) else shape, description.get("tile"), **parts)
    except InputError as error:
        raise InputError(f"{path}: {name}: {error}; save the model again") from None
    parent, child = _parent(path, model, name)
    linear = parent._modules.get(child)
    if (
        linear is None
        or not is_linear(linear)
        or weight_matrix(linear).shape != packed.shape
        or getattr(linear.bias, "shape", None) != getattr(bias, "shape", None)
    ):
        raise _other_model(path, name)
    setattr(parent, child, HybridLinear(packed, bias, backend))


def _put_tensor(path: Path, model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer by a tensor of the same shape, floating-point if the old one is.

    Raises:
        InputError: the model has no such parameter or buffer.
    """
    module, child = _parent(path, model, name)
    known = module._parameters.get(child, module._buffers.get(child))
    if known is None or (known.shape, known.is_floating_point()) != (tensor.shape, tensor.is_floating_point()):
        raise _other_model(path, name)
    if child in module._parameters:
        module._parameters[child] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[child] = tensor


def _parent(path: Path, model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the parent module of a parameter or layer, and the name in it."""
    parent, _, child = name.rpartition(".")
    try:
        return model.get_submodule(parent), child
    except AttributeError:
        raise _other_model(path, name) from None


def _other_model(path: Path, name: str) -> InputError:
    return InputError(f"{path}: {name} does not belong to the model of the folder's config.json")
