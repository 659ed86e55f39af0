"""Loading of a model whose prunable weights several processes shard by rows, for models larger than a GPU.

Each process makes the masked weights of its own rows for all processes (`patch.masks.sharded_linear`), so it needs no
others of the frozen weights, which are never gathered during a step. It has all of the rest: embeddings, norms, biases
and the output layer, a thirtieth of a model of 70B weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from patch.learning.model_masks import layer_sharding
from patch.masks.row_sharding import WeightRows
from patch.models.loading import is_transposed, prunable_linears, weight_matrix
from patch.models.partial_loading import StoredWeights, load_without

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_sharded(
    folder: Path | str, dtype: str = "float32", device: str = "cpu", tile: int | None = None
) -> tuple[PreTrainedModel, dict[str, WeightRows]]:
    """Load a causal language model from a local folder, frozen, in evaluation mode and without its prunable weights.

    Args:
        folder: folder with safetensors files.
        dtype: data type of the weights.
        device: device of the model and of the rows.
        tile: side of the tiles that are learned, or None.

    Returns:
        The model, whose prunable weights are on the `meta` device, and this process' rows of these, by layer name. A
        process reads no other rows.

    Raises:
        InputError: the folder holds no model, one that is damaged or lacks weights, or one that needs its own code.
    """
    model = load_without(folder, dtype, device, lambda model: [m.weight for m in prunable_linears(model).values()])
    rows, stored = {}, StoredWeights(folder, model)
    for number, (name, linear) in enumerate(prunable_linears(model).items()):
        sharding = layer_sharding(weight_matrix(linear).shape, tile, number)
        own = stored.part(f"{name}.weight", linear.weight.shape, int(is_transposed(linear)), sharding.own)
        own = own.T if is_transposed(linear) else own
        # A copy, since what is read shares the memory of the whole file.
        held = torch.empty(own.shape, dtype=getattr(torch, dtype), device=device).copy_(own)
        rows[name] = WeightRows(held, sharding)
    return model, rows
