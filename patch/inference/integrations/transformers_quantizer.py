"""Packed models in transformers: `from_pretrained`, `save_pretrained` and `push_to_hub`.

Importing this module registers the quantization method `patch-hybrid`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from patch.errors import InputError
from patch.inference.freezing import freeze
from patch.inference.linear import HybridLinear
from patch.inference.packed_config import METHOD, PackedConfig, TensorSpec, parse_config
from patch.inference.weight_files import check_stored, read_headers
from patch.models.loading import prunable_linears, weight_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register_quantization_config(METHOD)
class PatchHybridConfig(QuantizationConfigMixin):
    """Description of the packed layers, in the form that transformers needs."""

    def __init__(self, packed: PackedConfig) -> None:
        self.quant_method = METHOD
        self.packed = packed

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Validate the JSON object of `config.json`.

        Raises:
            InputError: see `parse_config`.
        """
        config = cls(parse_config(config_dict))
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of `config.json`."""
        return self.packed.to_dict()


@register_quantizer(METHOD)
class PatchHybridQuantizer(HfQuantizer):
    """Replaces linear layers by empty packed ones before their weights are read, and checks these afterwards."""

    # transformers then refuses to pack a dense model while it is loaded, which needs masks.
    requires_calibration = True
    quantization_config: PatchHybridConfig

    def is_serializable(self) -> bool:
        """Return whether `save_pretrained` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Return whether the model can be trained."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Return whether `torch.compile` works."""
        return True

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        """Replace the described layers, and check the headers of the weight files.

        Raises:
            InputError: the description, the weight files and the model do not agree.
        """
        linears = prunable_linears(model)
        for name, layer in self.quantization_config.packed.layers.items():
            where = f"{model.name_or_path}/config.json: quantization_config: {name}"
            if name not in linears:
                raise InputError(f"{where} is not a linear layer of a decoder block of {type(model).__name__}")
            linear = linears[name]
            shape = tuple(weight_matrix(linear).shape)
            if shape != layer.sizes:
                raise InputError(f"{where} has the shape {layer.shape}; the model's layer has {list(shape)}")
            replace_module(model, name, HybridLinear.empty(layer, linear.bias is not None, linear.weight.dtype))
            parent = model.get_submodule(name.rpartition(".")[0])
            # GPT-2's attention initializes the weight of a layer in it, which a packed layer lacks. A module's own
            # tensors are all read, except those of its buffers that are never stored.
            if not parent._non_persistent_buffers_set:
                parent._is_hf_initialized = True
        if checkpoint_files is not None:
            _check_files(model, checkpoint_files)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        """Move the tensors into private memory, check each packed layer and freeze the model.

        Raises:
            InputError: names the first layer that is damaged.
        """
        known: set[Tensor] = set()
        for name, module in model.named_modules():
            _own_tensors(module, known)
            if isinstance(module, HybridLinear):
                _check_layer(model, name, module)
        # Most backends have no backward pass.
        freeze(model)

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[None, dict[str, str]]:
        """Describe the model as it is now in the configuration that `save_pretrained` is about to write.

        Raises:
            InputError: names the first layer that is damaged.
        """
        describe_packed(model)
        return None, {}


def describe_packed(model: PreTrainedModel) -> None:
    """Describe a model's packed layers in its configuration, so that `save_pretrained` writes them as they are.

    Raises:
        InputError: the model has no packed layer, or a damaged one.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, HybridLinear)}
    if not layers:
        raise InputError(f"{type(model).__name__} has no packed layer; convert it first")
    for name, layer in layers.items():
        _check_layer(model, name, layer)
    config = PatchHybridConfig(PackedConfig(layers={name: layer.description for name, layer in layers.items()}))
    model.config.quantization_config = config
    model.hf_quantizer = PatchHybridQuantizer(config)
    model.is_quantized, model.quantization_method = True, METHOD


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule of this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _check_layer(model: PreTrainedModel, name: str, layer: HybridLinear) -> None:
    try:
        _ = layer.packed.checked
    except InputError as error:
        raise InputError(f"{model.name_or_path or type(model).__name__}: {name}: {error}") from None


def _check_files(model: PreTrainedModel, files: list[str]) -> None:
    """Compare the tensors of the weight files with those of the empty model.

    Raises:
        InputError: a tensor is missing, unknown, or of another shape or kind.
    """
    from transformers.core_model_loading import revert_weight_conversion

    stored = read_headers(files)
    # The names that `save_pretrained` would write, which differ from the model's in some families.
    tensors: dict[str, Tensor] = revert_weight_conversion(model, model.state_dict())
    expected = {name: TensorSpec(tuple(part.shape), _dtype(part)) for name, part in tensors.items()}
    # Tied tensors are stored once.
    optional = set(model.all_tied_weights_keys) | _matching(expected, model._keys_to_ignore_on_load_missing)
    needed = {name: spec for name, spec in expected.items() if name in stored or name not in optional}
    check_stored(stored, needed, model.name_or_path)
    unknown = stored.keys() - expected.keys()
    if unknown := sorted(unknown - _matching(unknown, model._keys_to_ignore_on_load_unexpected)):
        path = stored[unknown[0]].path
        raise InputError(f"{path}: {unknown[0]!r:.200} does not belong to the model of config.json")


def _dtype(tensor: Tensor) -> str | None:
    """Return the name of a dtype; None if it is a floating-point one, to which any other is converted on loading."""
    return None if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _matching(names: Iterable[str], patterns: Iterable[str] | None) -> set[str]:
    return {name for name in names for pattern in patterns or () if re.search(pattern, name)}


def _own_tensors(module: nn.Module, known: set[Tensor]) -> None:
    """Copy a module's own tensors on the CPU into private memory, except the ``known`` parameters, which are tied.

    transformers maps them from the file, so a later change or truncation of the file would reach the kernels.
    """
    for parameter in module._parameters.values():
        if parameter is not None and parameter.device.type == "cpu" and parameter not in known:
            known.add(parameter)
            parameter.data = parameter.data.clone()
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.device.type == "cpu":
            module._buffers[name] = buffer.clone()
