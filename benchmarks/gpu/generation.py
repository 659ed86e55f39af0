"""Generation by a model of LLaMA-2-7B's size and random weights, dense and packed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from benchmarks.candidates import SPARSITIES, generation_speeds, random_llama, random_mask_set
from benchmarks.gpu.layers import as_timed
from benchmarks.gpu.report import Result
from benchmarks.gpu.sizes import Sizes

NAME = "generation"
SECONDS = 450
REQUIRES = ("triton", "transformers")


def measurements(sizes: Sizes) -> dict[str, Callable[[], Result]]:
    """Return a measurement for every sparsity and batch, of the dense model and a packed one in turn.

    Two models at a time fit on a GPU of 48 GB.
    """
    return {
        f"{sparsity}%/{batch}": partial(measure, sparsity, batch, sizes)
        for sparsity in SPARSITIES
        for batch in sizes.batches
    }


@lru_cache(maxsize=1)
def _dense(sizes: Sizes) -> Any:
    import torch

    torch.manual_seed(0)
    return random_llama(sizes.generated, torch.bfloat16, sizes.device)


_converted: dict[int, Any] = {}


def _packed(sparsity: int, sizes: Sizes) -> Any:
    from patch.inference import convert
    from patch.inference.comparison import share_tensors

    if sparsity not in _converted:
        # Before the next one is made: three models do not fit.
        _converted.clear()
        model = _dense(sizes)
        _converted[sparsity] = convert(share_tensors(model), random_mask_set(model, sparsity, sizes.tile))
    return _converted[sparsity]


def measure(sparsity: int, batch: int, sizes: Sizes) -> Result:
    """Measure both models with one batch."""
    from patch.inference.comparison import weight_bytes

    name = f"{sparsity}%"
    models = {"dense": _dense(sizes), name: _packed(sparsity, sizes)}
    found, in_graph = generation_speeds(models, batch, sizes.prompt, sizes.new_tokens, sizes.repeats)
    size = weight_bytes(models["dense"], models[name])
    facts = {candidate: {"graph": float(captured)} for candidate, captured in in_graph.items()}
    facts[name]["layer_bytes"] = size["measured"] / size["dense"]
    return Result(timed={candidate: as_timed(one, facts[candidate]) for candidate, one in found.items()})
