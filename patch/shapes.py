"""Sizes of a model's linear layers from its configuration alone, before any weight is there."""

from __future__ import annotations

import json
from pathlib import Path

from patch.config.models import LocalModel, Model, Shape, TrainedModel
from patch.errors import InputError


def model_shape(name: str, model: Model) -> Shape:
    """Sizes of a configured model.

    Raises:
        InputError: a size is missing from the model's configuration.
    """
    source = model.source
    if isinstance(source, TrainedModel):
        return _from_config(f"models.{name}.source.config", source.config, source.tokenizer.vocab_size)
    if isinstance(source, LocalModel):
        path = Path(source.path) / "config.json"
        if not path.exists():
            raise InputError(f"models.{name}.source.path is {source.path!r}: no config.json in it; give a folder that save_pretrained wrote")
        return _from_config(str(path), json.loads(path.read_text()), None)
    return source.shape


def _from_config(where: str, config: dict, vocab_size: int | None) -> Shape:
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            hidden_size=hidden,
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocab_size=vocab_size or config["vocab_size"],
            tie_word_embeddings=config.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise InputError(f"{where}: `{error.args[0]}` is missing") from None


def linear_shapes(shape: Shape) -> dict[str, tuple[int, int]]:
    """`[out, in]` of each linear layer of one decoder block with grouped heads and a gated MLP."""
    query = shape.num_attention_heads * shape.head_dim
    key_value = shape.num_key_value_heads * shape.head_dim
    return {
        "q_proj": (query, shape.hidden_size),
        "k_proj": (key_value, shape.hidden_size),
        "v_proj": (key_value, shape.hidden_size),
        "o_proj": (shape.hidden_size, query),
        "gate_proj": (shape.intermediate_size, shape.hidden_size),
        "up_proj": (shape.intermediate_size, shape.hidden_size),
        "down_proj": (shape.hidden_size, shape.intermediate_size),
    }


def prunable_parameters(shape: Shape) -> int:
    """Number of weights in the linear layers of all decoder blocks."""
    return shape.num_hidden_layers * sum(rows * columns for rows, columns in linear_shapes(shape).values())


def parameters(shape: Shape) -> int:
    """Number of weights with the embedding and the output layer, norms and biases aside."""
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    return prunable_parameters(shape) + embeddings


def check_tile(name: str, shape: Shape, tile: int) -> None:
    """Refuse a tile that does not divide every linear layer.

    Raises:
        InputError: names the model, the tile, the layer, and the tiles that would do.
    """
    shapes = linear_shapes(shape)
    bad = {layer: size for layer, size in shapes.items() if any(length % tile for length in size)}
    if not bad and tile % 4 == 0:
        return
    sizes = {length for size in shapes.values() for length in size}
    good = [t for t in range(4, min(sizes) + 1, 4) if all(length % t == 0 for length in sizes)]
    layer, size = next(iter(bad.items())) if bad else next(iter(shapes.items()))
    reason = f"does not divide {layer} {list(size)}" if bad else "is not a multiple of 4"
    raise InputError(f"tile {tile} {reason} of model `{name}`; use one of {', '.join(map(str, good)) or 'none: this model has no common tile'}")
