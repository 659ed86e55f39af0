"""Seconds and peak memory of a learning step: ours, the straightforward formulation, and a dense step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count

from benchmarks.candidates import random_llama
from benchmarks.gpu.layers import as_timed
from benchmarks.gpu.report import NotMeasuredError, Result
from benchmarks.gpu.sizes import Sizes
from benchmarks.learning_steps import WAYS, make_step, planned_mb
from benchmarks.measure import measure as measured
from benchmarks.measure import timed

NAME = "learning"
SECONDS = 330
REQUIRES = ("triton", "transformers")
ITEMSIZE = 2
WARMUP, ROUNDS = 2, 3


def measurements(sizes: Sizes) -> dict[str, Callable[[], Result]]:
    """Return a measurement for every size and way; each has the memory to itself."""
    return {f"{name}/{way}": partial(measure, name, way, sizes) for name in sizes.learned for way in WAYS}


def measure(name: str, way: str, sizes: Sizes) -> Result:
    """Measure the steps of one way.

    Raises:
        NotMeasuredError: The plan needs more memory than the card has.
    """
    import torch

    from patch.inference.timing import measure_in_rounds, quartiles

    shape, cuda = sizes.learned[name], sizes.device == "cuda"
    plan = planned_mb(way.removesuffix("-reference"), shape, ITEMSIZE, sizes.seqlen, True, sizes.device)
    if cuda and plan:
        check_memory(plan, torch.cuda.get_device_properties(0).total_memory / 1e6, way)
    stack, numbers = ExitStack(), count()

    def prepare() -> Callable[[], object]:
        torch.manual_seed(0)
        model = random_llama(shape, torch.bfloat16, sizes.device)
        tokens = torch.randint(0, shape.vocab_size, (1, sizes.seqlen), device=sizes.device)
        step, _ = make_step(way, model, tokens, stack, sizes.tile, True)
        for _ in range(WARMUP):
            step(next(numbers))
        return lambda: step(next(numbers))

    with stack:
        prepared = measured(prepare, cuda)
        run = {way: timed(prepared.result, sizes.device)}
        found = measure_in_rounds(run, way, lambda own, _: {"seconds": quartiles(own)}, sizes.repeats, 0, ROUNDS)
    facts = {"peak_mb": prepared.megabytes} | ({"plan_mb": plan} if plan and way in ("joint", "tile") else {})
    return Result(timed={way: as_timed(found[way], facts)})


def check_memory(plan_mb: float, card_mb: float, way: str) -> None:
    """Refuse a step that does not fit the card; the references need more than our steps, whose plan is compared.

    Raises:
        NotMeasuredError: It does not fit.
    """
    from patch.pipeline.resources.memory import GPU_SLACK

    if GPU_SLACK * plan_mb > card_mb:
        what = "the plan of our step is" if way.endswith("reference") else "the plan is"
        sizes = f"{plan_mb / 1000:.0f} GB and a tenth of margin; the card has {card_mb / 1000:.0f} GB"
        raise NotMeasuredError(f"{what} {sizes}")
