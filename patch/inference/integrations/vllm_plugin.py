"""vLLM plugin for packed models: the quantization method `patch-hybrid`.

vLLM imports this module in each of its processes, through the entry point `vllm.general_plugins`. Packed tensors are
loaded as they are stored; no dense weight is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.models.utils import WeightsMapper

from patch.errors import InputError
from patch.inference.integrations.layer_loader import LayerLoader
from patch.inference.linear import HybridLinear
from patch.inference.packed_config import METHOD, PackedConfig, PackedLayer, parse_config
from patch.inference.weight_files import check_folder

# vLLM's names of the layers merged for attention; those of other merged layers are numbers.
ATTENTION = {"q": 0, "k": 1, "v": 2}


def register() -> None:
    """Register the quantization method, which the import of this module has done."""


@register_quantization_config(METHOD)
class HybridConfig(QuantizationConfig):
    """Packed layers of a model.

    Attributes:
        config: description of the packed layers.
        layers: the same by the names of vLLM's modules, before vLLM merges layers.
    """

    def __init__(self, config: PackedConfig) -> None:
        super().__init__()
        self.config = config
        self.layers: dict[str, PackedLayer] = dict(config.layers)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HybridConfig:
        """Return the configuration of a `quantization_config`.

        Raises:
            InputError: the format is newer, or a layer is described wrongly.
        """
        return cls(parse_config(config))

    def get_name(self) -> str:
        """Return the name of the quantization method."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Return the dtypes of a model."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Return ten times the compute capability that Triton's tensor cores need."""
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return no names, since `config.json` holds the configuration."""
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """Rename the layers as vLLM's model renames its weights."""
        self.layers = hf_to_vllm_mapper.apply_dict(self.layers)

    def maybe_update_config(self, model_name: str, *arguments: Any, **options: Any) -> None:
        """Check the headers of a local folder's weight files, before any weight is read.

        A model of the hub is downloaded later; its tensors are checked one by one when they are loaded.

        Raises:
            InputError: a file or a tensor of a packed layer is missing, or has another size or dtype.
        """
        if Path(model_name).is_dir():
            check_folder(model_name, self.config)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Return the method of a layer; None for vLLM's default.

        Raises:
            InputError: a packed layer is not a linear layer in vLLM.
        """
        parent, _, child = prefix.rpartition(".")
        if isinstance(layer, LinearBase):
            merged = self.packed_modules_mapping.get(child, [child])
            members = {name: self.layers.get(name) for name in (f"{parent}.{each}".lstrip(".") for each in merged)}
            return HybridLinearMethod(members) if any(members.values()) else UnquantizedLinearMethod()
        if packed := [name for name in self.layers if name == prefix or name.startswith(f"{prefix}.")]:
            raise InputError(
                f"{packed[0]} is packed, but vLLM makes it a part of {type(layer).__name__}, not a linear layer"
            )
        return None


class HybridLinearMethod(LinearMethodBase):
    """Loading and product of a layer of vLLM, of whose merged layers at least one is packed.

    Args:
        members: descriptions of the merged layers, by name; None for a dense one.
    """

    def __init__(self, members: Mapping[str, PackedLayer | None]) -> None:
        self.members = members

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register an empty parameter for each part, through which vLLM passes the tensors of the files.

        With tensor parallelism, the sizes of a process' parts follow from the tiles that are dense, and so from the
        files.

        Raises:
            InputError: the layer has other sizes, or tensor parallelism would cut its tiles.
        """
        inputs = input_size_per_partition, input_size
        sizes = output_partition_sizes
        self.loader = LayerLoader(self.members, sizes, inputs, layer.tp_rank, layer.tp_size, params_dtype)
        for part, dtype in self.loader.parts.items():
            parameter = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
            parameter.weight_loader = partial(self._load, layer, part)
            layer.register_parameter(part, parameter)

    def _load(
        self, layer: nn.Module, part: str, parameter: nn.Parameter, tensor: Tensor, shard_id: str | int | None = None
    ) -> None:
        """Pass a tensor on, and create the packed layers when all tensors are there."""
        index = ATTENTION.get(shard_id, shard_id) or 0
        pieces = self.loader.add(index, part, tensor)
        if pieces is not None:
            layers = (HybridLinear(piece.weight, adapter=piece.adapter) for piece in pieces)
            layer.packed = nn.ModuleList(layers).to(parameter.device)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Check that the layer is complete, and its parts on their device.

        Raises:
            InputError: tensors are missing or damaged.
        """
        if not hasattr(layer, "packed"):
            raise InputError(f"{self.loader.missing[0]} is missing in the model's files")
        for packed in layer.packed:
            _ = packed.packed.checked

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map inputs `[..., in]` to `[..., out]`."""
        outputs = [packed(x) for packed in layer.packed]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return output if bias is None else output + bias
