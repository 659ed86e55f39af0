"""Sizes, dtype and tile of a pretrained model from its configuration, checked against the layers of transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from patch.errors import InputError
from patch.files.io import read_json_object
from patch.hub.errors import OWN_CODE, library_errors
from patch.models.loading import load_config, prunable_linears, weight_matrix
from patch.models.model_settings import Model, Shape
from patch.models.shapes import config_shape, prunable_parameters

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Side of a tile in the paper.
LARGEST_TILE = 128


@dataclass(frozen=True)
class Description:
    """Properties of a model for its block in a configuration.

    Attributes:
        shape: Sizes.
        dtype: Data type of the stored weights, or float32 if the model's configuration names none that can be chosen.
        tile: Largest power of two up to 128 that divides every prunable layer.
    """

    shape: Shape
    dtype: str
    tile: int


def describe_folder(folder: Path | str) -> Description:
    """Describe a model by the file `config.json` in a folder; its weights are not needed.

    Raises:
        InputError: the file is missing or damaged, or the model cannot be pruned by this software.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise InputError(f"model folder {folder}: no config.json in it; give a folder that save_pretrained wrote")
    raw = read_json_object(path)
    _check_type(path, raw)
    return _describe(path, load_config(folder), raw)


def describe_gguf(file: Path) -> Description:
    """Describe a model by the header of a GGUF file.

    Raises:
        InputError: the file is damaged, or the model cannot be pruned by this software.
    """
    from transformers import AutoConfig

    with library_errors(f"{file} cannot be loaded"):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    # The weights are dequantized, so the type in the file does not matter.
    return _describe(file, config, config.to_dict() | {"dtype": "float32"})


def _check_type(path: Path, raw: dict[str, Any]) -> None:
    """Refuse an architecture that transformers does not know, and weights that are quantized.

    Raises:
        InputError: the model cannot be loaded.
    """
    import transformers
    from transformers import CONFIG_MAPPING

    family = raw.get("model_type")
    if family not in CONFIG_MAPPING:
        reason = OWN_CODE if "auto_map" in raw else "correct it, or install a version that knows it"
        raise InputError(f"{path}: transformers {transformers.__version__} has no model type {family!r:.80}; {reason}")
    if raw.get("quantization_config"):
        raise InputError(f"{path}: the weights are quantized; give the model that they were made from")


def _describe(path: Path, config: PretrainedConfig, raw: dict[str, Any]) -> Description:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{path}: models of the type {config.model_type!r} are no causal language models")
    shape = config_shape(str(path), raw).model_copy(update={"tie_word_embeddings": config.tie_word_embeddings})
    with library_errors(f"a causal language model of {path} cannot be made"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    sizes = [weight_matrix(layer).shape for layer in prunable_linears(model).values()]
    found, expected = sum(map(math.prod, sizes)), prunable_parameters(shape)
    if found != expected:
        raise InputError(
            f"{path}: models of the type {config.model_type!r} are not supported: their decoder blocks have {found:,} "
            f"weights in linear layers, but attention and MLP of these sizes have {expected:,}"
        )
    lengths = math.gcd(*(length for size in sizes for length in size))
    if lengths % 4:
        raise InputError(f"{path}: the lengths of the layers have no common multiple of 4 as a divisor: no tile fits")
    dtype = str(raw.get("dtype") or raw.get("torch_dtype")).removeprefix("torch.")
    known = get_args(Model.model_fields["dtype"].annotation)
    return Description(shape, dtype if dtype in known else "float32", min(lengths & -lengths, LARGEST_TILE))
