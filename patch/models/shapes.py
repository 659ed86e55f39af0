"""Sizes of a model's linear layers from its configuration, without weights."""

from __future__ import annotations

import math
from pathlib import Path

from patch.errors import InputError
from patch.files.io import read_json_object
from patch.models.model_settings import LocalModel, Model, Shape, TrainedModel
from patch.settings import validate

# Defaults of transformers for keys that a family's configuration may omit.
FAMILY_DEFAULTS: dict[str, dict] = {
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "gemma3_text": {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
    "opt": {"gated_mlp": False, "tie_word_embeddings": True},
    "gpt2": {"gated_mlp": False, "fused_attention": True, "tie_word_embeddings": True},
}
# Alternative names of the sizes.
ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "ffn_dim": "intermediate_size",
}


def model_shape(name: str, model: Model) -> Shape:
    """Return the sizes of a configured model.

    Raises:
        InputError: a size is missing from the model's configuration, or is invalid.
    """
    source = model.source
    if isinstance(source, TrainedModel):
        return config_shape(
            f"models.{name}.source.config",
            {"model_type": source.architecture, **source.config},
            source.tokenizer.vocab_size,
        )
    if isinstance(source, LocalModel):
        path = Path(source.path) / "config.json"
        if not path.exists():
            raise InputError(
                f"models.{name}.source.path is {source.path!r}: no config.json in it; "
                "give a folder that save_pretrained wrote"
            )
        return config_shape(str(path), read_json_object(path))
    return source.shape


def config_shape(where: str, config: dict, vocab_size: int | None = None) -> Shape:
    """Return the sizes that the values of a `config.json` give.

    Args:
        where: name of the file or key in messages.
        config: the values.
        vocab_size: number of tokens, instead of that in ``config``.

    Raises:
        InputError: a size is missing or is invalid.
    """
    family = config.get("model_type", "")
    if not isinstance(family, str):
        raise InputError(f"`{where}.model_type` is {family!r}; it must be the name of a family")
    defaults = FAMILY_DEFAULTS.get(family, {})
    config = {ALIASES.get(key, key): value for key, value in config.items() if value is not None}
    sizes = defaults | {key: value for key, value in config.items() if key in Shape.model_fields}
    if vocab_size:
        sizes["vocab_size"] = vocab_size
    heads, hidden = sizes.get("num_attention_heads"), sizes.get("hidden_size")
    sizes.setdefault("num_key_value_heads", heads)
    for key, value in (("num_attention_heads", heads), ("hidden_size", hidden)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"`{where}.{key}` is {value!r}; it must be a positive integer")
    if heads and hidden:
        sizes.setdefault("head_dim", hidden // heads)
    if hidden and not sizes.get("gated_mlp", True):
        sizes.setdefault("intermediate_size", 4 * hidden)
    missing = [key for key, field in Shape.model_fields.items() if field.is_required() and sizes.get(key) is None]
    if missing:
        raise InputError(f"{where}: `{missing[0]}` is missing")
    shape = validate(Shape, sizes, where)
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise InputError(
            f"`{where}.num_key_value_heads` is {shape.num_key_value_heads}; "
            f"it must divide num_attention_heads, {shape.num_attention_heads}"
        )
    return shape


def linear_shapes(shape: Shape) -> dict[str, tuple[int, int]]:
    """Return the shape `[out, in]` of each linear layer of one decoder block."""
    query = shape.num_attention_heads * shape.head_dim
    key_value = shape.num_key_value_heads * shape.head_dim
    reading = {"q_proj": query, "k_proj": key_value, "v_proj": key_value}
    if shape.fused_attention:
        reading = {"qkv_proj": sum(reading.values())}
    hidden = dict.fromkeys(("gate_proj", "up_proj") if shape.gated_mlp else ("up_proj",), shape.intermediate_size)
    return {
        **{name: (rows, shape.hidden_size) for name, rows in reading.items()},
        "o_proj": (shape.hidden_size, query),
        **{name: (rows, shape.hidden_size) for name, rows in hidden.items()},
        "down_proj": (shape.hidden_size, shape.intermediate_size),
    }


def prunable_parameters(shape: Shape) -> int:
    """Return the number of weights in the linear layers of all decoder blocks."""
    return shape.num_hidden_layers * sum(rows * columns for rows, columns in linear_shapes(shape).values())


def parameters(shape: Shape) -> int:
    """Return the number of weights, including embedding and output layer, without norms and biases."""
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    return prunable_parameters(shape) + embeddings


def check_groups(name: str, shape: Shape, size: int) -> None:
    """Refuse a group size that does not divide the inputs of every linear layer.

    Raises:
        InputError: a layer does not fit; the message names the model, the group size, the layer and valid sizes.
    """
    inputs = {layer: columns for layer, (_, columns) in linear_shapes(shape).items()}
    for layer, columns in inputs.items():
        if columns % size:
            raise InputError(
                f"groups of {size} do not divide the {columns} inputs of {layer} of model `{name}`; use a pattern N:M "
                f"whose M divides {math.gcd(*inputs.values())}"
            )


def check_tile(name: str, shape: Shape, tile: int) -> None:
    """Refuse a tile that does not divide every linear layer; a larger tile is clipped to the layer.

    Raises:
        InputError: a layer does not fit; the message names the model, the tile, the layer and valid tiles.
    """
    shapes = linear_shapes(shape)
    bad = {layer: size for layer, size in shapes.items() if any(length > tile and length % tile for length in size)}
    if not bad and tile % 4 == 0:
        return
    sizes = {length for size in shapes.values() for length in size}
    good = [t for t in range(4, min(sizes) + 1, 4) if all(length % t == 0 for length in sizes)]
    layer, size = next(iter(bad.items())) if bad else next(iter(shapes.items()))
    reason = f"does not divide {layer} {list(size)}" if bad else "is not a multiple of 4"
    right = f"use one of {', '.join(map(str, good))}" if good else "no tile does, so change the sizes of the model"
    raise InputError(f"tile {tile} {reason} of model `{name}`; {right}")


def check_sharding(name: str, shape: Shape, processes: int) -> None:
    """Refuse more processes than a linear layer has rows, or a number that does not divide the rows of GPT-2's layers.

    FSDP2 shards GPT-2's `[in, out]` weights along the second dimension, which it divides only evenly.

    Raises:
        InputError: a layer does not fit; the message names the keys, the model, the layer and a number that fits.
    """
    rows = {layer: size[0] for layer, size in linear_shapes(shape).items()}
    layer = min(rows, key=rows.__getitem__)
    fitting, reason = min(processes, rows[layer]), "more than"
    if shape.fused_attention:
        common = math.gcd(*rows.values())
        fitting = max(number for number in range(1, fitting + 1) if common % number == 0)
        layer = next((layer for layer, count in rows.items() if count % processes), layer)
        reason = "no divisor of"
    if fitting < processes:
        raise InputError(
            f"proxsparse shards the weights of model `{name}` over {processes} processes (`resources.learn_gpus` times "
            f"`resources.learn_nodes`), {reason} the {rows[layer]} rows of {layer}; use {fitting} of them"
        )
