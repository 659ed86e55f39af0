"""A converted model in a folder: its configuration, and all its tensors, packed as they are, in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.inference.linear import HybridLinear
from patch.inference.packed import PackedWeight, tile_counts
from patch.io import atomic_directory
from patch.masks.tile import tile_grid
from patch.models import is_linear, load_skeleton, weight_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = "patch-packed-1"
WEIGHTS = "packed.safetensors"
PARTS = ("values", "bits", "dense")


def save(model: PreTrainedModel, folder: Path | str) -> None:
    """Write a model that `convert` has made, atomically; what is at ``folder`` is replaced.

    Raises:
        InputError: the model has no packed layer.
    """
    from safetensors.torch import save_file

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, HybridLinear)}
    if not layers:
        raise InputError(f"{type(model).__name__} has no packed layer; convert it first, or use save_pretrained")
    shapes = {n: {"shape": [m.out_features, m.in_features], "tile": m.tile} for n, m in layers.items()}
    metadata = {"format": FORMAT, "layers": json.dumps(shapes)}
    # Without those that are remade when tied again; with buffers that a state dict leaves out, such as of rotary
    # embeddings, which the model without weights lacks.
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with atomic_directory(Path(folder).resolve()) as temporary:
        model.config.save_pretrained(temporary)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(temporary)
        save_file({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, temporary / WEIGHTS, metadata)


def load(folder: Path | str, device: torch.device | str = "cpu", backend: str | None = None) -> PreTrainedModel:
    """Load what `save` wrote, frozen and in evaluation mode.

    Args:
        folder: where it is.
        device: where it goes.
        backend: of all packed layers, see `HybridLinear`.

    Raises:
        InputError: the folder or the file is missing, truncated or foreign, or its contents do not fit each other.
    """
    path = Path(folder) / WEIGHTS
    layers, tensors = _read(path)
    model = load_skeleton(folder)
    _configure_generation(model, Path(folder))
    for name, description in layers.items():
        packed = _packed(path, name, description, {part: tensors.pop(f"{name}.{part}", None) for part in PARTS})
        parent, child = _place(path, model, name)
        linear, bias = getattr(parent, child, None), tensors.pop(f"{name}.bias", None)
        if (
            not is_linear(linear)
            or weight_matrix(linear).shape != packed.shape
            or getattr(linear.bias, "shape", None) != getattr(bias, "shape", None)
        ):
            raise _other_model(path, name)
        setattr(parent, child, HybridLinear(packed, bias, backend))
    for name, tensor in tensors.items():
        module, child = _place(path, model, name)
        if getattr(module._parameters.get(child), "shape", None) == tensor.shape:
            module._parameters[child] = nn.Parameter(tensor, requires_grad=False)
        elif child in module._buffers:
            module._buffers[child] = tensor
        else:
            raise _other_model(path, name)
    model.tie_weights()
    missing = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if missing:
        raise InputError(f"{path}: it lacks {missing[0]}; save the model again")
    return model.to(device).eval().requires_grad_(False)


def _configure_generation(model: PreTrainedModel, folder: Path) -> None:
    """Make a model generate as the saved one did, where that is known."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").exists():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/generation_config.json cannot be read: {error}") from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{path}: format is {header.get('format')!r}, expected {FORMAT!r}")
            layers = json.loads(header["layers"])
            if not isinstance(layers, dict):
                raise InputError(f"{path}: its header is damaged (layers {layers!r}); save the model again")
            return layers, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a folder that `patch.inference.save` wrote") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error})") from None
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{path}: its header is damaged ({error}); save the model again") from None


def _place(path: Path, model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds what is of that name, and its name there."""
    parent, _, child = name.rpartition(".")
    try:
        return model.get_submodule(parent), child
    except AttributeError:
        raise _other_model(path, name) from None


def _other_model(path: Path, name: str) -> InputError:
    return InputError(f"{path}: {name} is of another model than the folder's config.json")


def _packed(path: Path, name: str, description: Any, parts: dict[str, Tensor | None]) -> PackedWeight:
    """A packed weight from a file, whose sizes agree.

    Raises:
        InputError: names what does not.
    """
    try:
        shape, tile = tuple(map(int, description["shape"])), int(description["tile"])
        grid, (weights, bytes_of_bits) = tile_grid(shape, tile), tile_counts(shape, tile)
    except (KeyError, TypeError, ValueError, AssertionError, ZeroDivisionError) as error:
        raise InputError(f"{path}: the shape of {name} is damaged ({error}); save the model again") from None
    dense = parts["dense"]
    if dense is None or dense.dtype != torch.bool or tuple(dense.shape) != grid:
        raise InputError(f"{path}: {name}.dense is missing or not a map of {list(grid)} tiles")
    count = int(dense.sum())
    sparse = dense.numel() - count
    for part, wanted in (("values", weights * count + weights // 2 * sparse), ("bits", bytes_of_bits * sparse)):
        tensor = parts[part]
        if (
            tensor is None
            or tensor.shape != (wanted,)
            or not (tensor.dtype == torch.uint8 if part == "bits" else tensor.is_floating_point())
        ):
            raise InputError(f"{path}: {name}.{part} is missing or not of {wanted} numbers")
    packed = PackedWeight(shape, tile, dense, parts["values"], parts["bits"])
    # A kernel does not ask again: groups of other than two would lead it out of its memory.
    if not packed.is_two_of_four():
        raise InputError(f"{path}: {name}.bits are damaged: a group does not keep two of four; save the model again")
    return packed
