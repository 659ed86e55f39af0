"""Loading of causal language models, and structural search for their prunable layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.files.io import read_json_object
from patch.hub.errors import OWN_CODE, library_errors

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# More layers would fill the memory before the missing weights are detected.
MOST_LAYERS = 10_000
TOKENIZER_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")


@cache
def _transposed() -> type[nn.Module]:
    """Return the class of GPT-2's linear layer, whose weight is `[in, out]`."""
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer: `nn.Linear`, or GPT-2's transposed one."""
    return isinstance(module, (nn.Linear, _transposed()))


def is_transposed(linear: nn.Module) -> bool:
    """Return whether a linear layer stores its weight as `[in, out]`."""
    return isinstance(linear, _transposed())


def weight_matrix(linear: nn.Module) -> Tensor:
    """Return a linear layer's weight as `[out, in]`: itself or a transposed view, so that writes reach the layer."""
    return linear.weight.T if is_transposed(linear) else linear.weight


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the stack of decoder blocks: the largest list of equal-typed modules with linear layers.

    Returns:
        The list's name within ``model`` and the list.

    Raises:
        InputError: the model has no such list.
    """
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1:
            sizes[name] = sum(layer.weight.numel() for layer in module.modules() if is_linear(layer))
    largest = max(sizes, key=sizes.__getitem__, default="")
    if not sizes.get(largest):
        raise InputError(f"{type(model).__name__} has no stack of decoder blocks with linear layers")
    return largest, model.get_submodule(largest)


def blocks_on(
    model: nn.Module, device: torch.device | str | None = None
) -> Iterator[tuple[nn.Module, dict[str, nn.Module]]]:
    """Yield each decoder block, temporarily on ``device``, with its linear layers by their names in ``model``."""
    home = next(model.parameters()).device
    prefix, blocks = decoder_blocks(model)
    for index, block in enumerate(blocks):
        block.to(device or home)
        yield block, {f"{prefix}.{index}.{name}": m for name, m in block.named_modules() if is_linear(m)}
        block.to(home)


def prunable_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Return every linear layer inside the decoder blocks, by its name in ``model``, in order.

    The embedding and the output layer are outside the blocks and are never pruned.
    """
    prefix, blocks = decoder_blocks(model)
    return {f"{prefix}.{name}": module for name, module in blocks.named_modules() if is_linear(module)}


def load_model(folder: Path | str, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load a causal language model from a local folder, frozen and in evaluation mode.

    Raises:
        InputError: the folder holds no model, one that is damaged, or one that needs its own code.
    """
    config, what = load_config(folder), f"model folder {folder}"
    check_weights(folder)
    with library_errors(f"{what} cannot be loaded"):
        model = read_pretrained(folder, what, config=config, dtype=getattr(torch, dtype), local_files_only=True)
    _check_types(folder, model)
    return model.to(device).eval().requires_grad_(False)


def check_weights(folder: Path | str) -> None:
    """Refuse a folder without safetensors weights.

    Raises:
        InputError: the folder has no `.safetensors` file.
    """
    if not any(Path(folder).glob("*.safetensors")):
        raise InputError(
            f"model folder {folder} cannot be loaded: no .safetensors file in it; other weights, such as pickles, can "
            "run code and are not read: load them where you trust them and save them again with save_pretrained"
        )


def read_pretrained(name: Path | str, what: str, **options: Any) -> PreTrainedModel:
    """Read a causal language model from safetensors files, with ``options`` of `from_pretrained`.

    Raises:
        InputError: the files lack weights; the message begins with ``what``.
    """
    from transformers import AutoModelForCausalLM

    # Weights in other files than safetensors are pickles.
    model, report = AutoModelForCausalLM.from_pretrained(
        name, output_loading_info=True, trust_remote_code=False, use_safetensors=True, **options
    )
    if report["missing_keys"]:
        raise InputError(f"{what}: its files lack the weights {sorted(report['missing_keys'])[0]}, ...")
    return model


def _check_types(folder: Path | str, model: PreTrainedModel) -> None:
    """Refuse weights that are stored as integers, which transformers would convert silently.

    Raises:
        InputError: a stored weight is not of a floating-point type.
    """
    from safetensors import safe_open

    names = {name for name, _ in model.named_parameters()}
    names |= {name.removeprefix(f"{model.base_model_prefix}.") for name in names}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in names.intersection(file.keys()):
                dtype = file.get_slice(name).get_dtype()
                if not dtype.startswith(("F", "BF")):
                    raise InputError(f"{path}: {name} has the type {dtype}; expected floating-point numbers")


def load_skeleton(folder: Path | str) -> PreTrainedModel:
    """Return a causal language model without its weights, on the `meta` device, with its layers, names and shapes.

    Raises:
        InputError: the folder holds no model, one that is damaged, or one that needs its own code.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(folder)
    with library_errors(f"model folder {folder} cannot be loaded"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def load_config(folder: Path | str) -> PretrainedConfig:
    """Load the configuration of a model in a local folder, and check its generation configuration.

    Raises:
        InputError: a file is missing or damaged, or the model needs its own code; the message names the file.
    """
    from transformers import AutoConfig, GenerationConfig

    path, generation = Path(folder) / "config.json", Path(folder) / "generation_config.json"
    if not path.exists():
        raise InputError(f"model folder {folder}: no config.json in it; give a folder that save_pretrained wrote")
    _check_json(folder, (path.name, generation.name))
    with library_errors(f"{path} cannot be loaded"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        text = config.get_text_config()
        attention, layers = text._attn_implementation, getattr(text, "num_hidden_layers", 0)
    if not isinstance(attention, str | None):
        raise InputError(f"{path}: attn_implementation is {attention!r:.80}; expected a name")
    # With the package `kernels`, transformers runs code from such a repository.
    if attention and "/" in attention:
        raise InputError(f"{path} names the attention kernel {attention!r}: {OWN_CODE}")
    if type(layers) is not int or not 0 < layers <= MOST_LAYERS:
        raise InputError(f"{path}: num_hidden_layers is {layers}; expected 1 to {MOST_LAYERS}")
    if generation.exists():
        with library_errors(f"{generation} cannot be loaded"):
            GenerationConfig.from_pretrained(folder, local_files_only=True)
    return config


def _check_json(folder: Path | str, names: tuple[str, ...]) -> None:
    """Check that each existing file among ``names`` holds a JSON object, before a library reads it."""
    for name in names:
        if (Path(folder) / name).exists():
            read_json_object(Path(folder) / name)


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a local folder.

    Raises:
        InputError: the folder holds none, one that is damaged, or one that needs its own code.
    """
    from transformers import AutoTokenizer

    _check_json(folder, TOKENIZER_FILES)
    with library_errors(f"tokenizer folder {folder} cannot be loaded"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
