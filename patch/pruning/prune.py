"""One-shot pruning of a whole model: methods are pure functions of a layer and share one block walk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from patch.calibration.input_statistics import InputStatistics, block_files, load_statistics
from patch.calibration.walk import walk_blocks
from patch.errors import InputError
from patch.masks.nm import Pattern
from patch.masks.packed import MaskSet, PackedMasks
from patch.methods import get_method
from patch.models.loading import blocks_on, decoder_blocks, weight_matrix
from patch.pruning.pruning_settings import Pruning

PruneLayer = Callable[[Tensor, InputStatistics | None], tuple[Tensor, Tensor]]


def layer_pruner(method: str, pattern: Pattern, settings: Pruning | None = None) -> PruneLayer:
    """Return a one-shot method as a function of a layer: `[out, in]` weight, statistics -> mask, new weight.

    The method `name` is the function `name` of the module `patch.pruning.name`, or that of another package's entry
    point. It is called with the weight, the statistics if it needs any, the pattern, and its own settings; it returns
    the mask, and the weights too if it updates them.

    Raises:
        InputError: the module of another package cannot be imported.
    """
    properties = get_method(method)
    module, _, name = (properties.function or f"patch.pruning.{method}:{method}").partition(":")
    try:
        function = getattr(import_module(module), name)
    except Exception as error:
        if not properties.package:
            raise
        what = f"method `{method}` of package {properties.package}: {module} cannot be imported"
        raise InputError(f"{what}: {type(error).__name__}: {error}") from error
    own = getattr(settings or Pruning(), method, None)
    options = own.model_dump() if own else {}

    def prune_layer(weight: Tensor, statistics: InputStatistics | None) -> tuple[Tensor, Tensor]:
        inputs = (weight,) if properties.statistics == "none" else (weight, statistics)
        result = function(*inputs, pattern, **options)
        mask, updated = result if properties.updates_weights else (result, weight)
        return mask, updated.masked_fill(~mask, 0)

    return prune_layer


@torch.no_grad()
def prune(
    model: nn.Module,
    method: str,
    pattern: Pattern,
    sequences: np.ndarray | None = None,
    batch_size: int = 8,
    settings: Pruning | None = None,
    on_block: Callable[[int, int], None] = lambda index, total: None,
    propagate: Literal["pruned", "dense"] = "pruned",
    statistics: Path | str | None = None,
    device: torch.device | str | None = None,
) -> MaskSet:
    """Prune every linear layer of the decoder blocks in place.

    Args:
        model: causal language model.
        method: one of the one-shot methods in `patch.methods`, such as `magnitude`, `wanda` or `sparsegpt`.
        pattern: `NM(2, 4)`, `Unstructured(0.5)`, ...
        sequences: `[samples, seqlen]` calibration token ids; `magnitude` needs none.
        batch_size: sequences per forward pass; on a CPU the masks are the same bits for every size.
        settings: the methods' own settings.
        on_block: progress function, called with the number of finished blocks and of all blocks.
        propagate: source of a block's inputs: the `pruned` or the `dense` blocks before it.
        statistics: folder of dense statistics, one file a block (see `patch.calibration`), instead of ``sequences``.
        device: device that prunes the layers, block by block; by default the model's device.

    Returns:
        The masks. The model's weights are zero outside them and, for methods that update, changed inside.

    Raises:
        InputError: the method needs calibration sequences and has none, or fails on their statistics.
    """
    masks = PackedMasks()
    prune_layer = layer_pruner(method, pattern, settings)

    def visit(linears: dict[str, nn.Module], layer_statistics: dict[str, InputStatistics]) -> None:
        for name, linear in linears.items():
            matrix = weight_matrix(linear)
            masks[name], updated = prune_layer(matrix, layer_statistics.get(name))
            matrix.copy_(updated)

    needs = get_method(method).statistics
    if needs == "none" or statistics is not None:
        for linears, layer_statistics in _with_statistics(model, needs, statistics, device, on_block):
            visit(linears, layer_statistics)
    elif sequences is None:
        raise InputError(f"{method} needs calibration sequences and got none")
    else:
        walk_blocks(model, sequences, visit, batch_size, needs == "gram", propagate, device, on_block)
    return MaskSet(masks, str(pattern))


def _with_statistics(
    model: nn.Module,
    needs: str,
    folder: Path | str | None,
    device: torch.device | str | None,
    on_block: Callable[[int, int], None],
) -> Iterator[tuple[dict[str, nn.Module], dict[str, InputStatistics]]]:
    """Yield each block's layers on ``device`` with any needed statistics from ``folder``, without forward passes."""
    total, place = len(decoder_blocks(model)[1]), device or next(model.parameters()).device
    pairs = zip(blocks_on(model, device), block_files(folder or ""), strict=False)
    for done, ((_, linears), path) in enumerate(pairs, 1):
        found = {} if needs == "none" else load_statistics(path, place, needs == "gram")
        if found and found.keys() != linears.keys():
            raise InputError(f"statistics {path}: of other layers than the model's; they belong to another one")
        yield linears, found
        on_block(done, total)
