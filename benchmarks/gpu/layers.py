"""Packed layers beside PyTorch's dense and semi-structured ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from benchmarks.candidates import (
    SPARSITIES,
    copied,
    copies_between,
    dense_calls,
    in_turn,
    packed_calls,
    random_packed,
)
from benchmarks.gpu.report import Quartiles, Result, Timed
from benchmarks.gpu.sizes import Sizes
from benchmarks.measure import timed

NAME = "layers"
SECONDS = 300
REQUIRES = ("triton",)
ROUNDS = 3
# Largest error of a product, as a fraction of the largest output, that rounding of its sums to bf16 explains.
TOLERANCE = 2e-2


def measurements(sizes: Sizes) -> dict[str, Callable[[], Result]]:
    """Return a measurement for every shape and number of rows, in which all candidates are called in turn."""
    return {
        f"{shape[0]}x{shape[1]}/{rows}": partial(measure, shape, rows, sizes)
        for shape in sizes.layers
        for rows in sizes.rows
    }


@lru_cache(maxsize=1)
def _copies(shape: tuple[int, int], sizes: Sizes) -> tuple[dict[str, list[Any]], dict[str, float], dict[str, str]]:
    """Return copies of the weight of every candidate, their byte limits, and the reasons why candidates are missing."""
    import torch

    torch.manual_seed(0)
    weight = torch.randn(shape, device=sizes.device).to(torch.bfloat16)
    weights: dict[str, Any] = {"dense": weight}
    weights |= {f"{sparsity}%": random_packed(weight, sparsity, tile=sizes.tile) for sparsity in SPARSITIES}
    limits = {name: weight.nbytes / one.nbytes for name, one in weights.items() if name != "dense"}
    count = copies_between(weights, sizes.between)
    copies: dict[str, list[Any]] = {}
    for name, one in weights.items():
        copies[name] = [one.clone() if name == "dense" else copied(one) for _ in range(count)]
    missing = {}
    for name, convert in semi_structured_types().items():
        try:
            made = [convert(weights["50%"]) for _ in range(count)]
            stored = [part for part in (made[0].packed, made[0].meta) if part is not None]
            copies[name], limits[name] = made, weight.nbytes / sum(part.nbytes for part in stored)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            missing[name] = first_line(error)
    return copies, limits, missing


def semi_structured_types() -> dict[str, Callable[[Any], Any]]:
    """Return functions that convert a packed weight that is 2:4 everywhere to each of PyTorch's formats."""
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

    from patch.inference.packed import unpack

    kinds = {"cuSPARSELt": SparseSemiStructuredTensorCUSPARSELT, "CUTLASS": SparseSemiStructuredTensorCUTLASS}
    return {name: lambda packed, kind=kind: kind.from_dense(unpack(packed)) for name, kind in kinds.items()}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def measure(shape: tuple[int, int], rows: int, sizes: Sizes) -> Result:
    """Measure all candidates of one layer with inputs of some rows."""
    import torch

    from patch.inference.packed import unpack
    from patch.inference.timing import measure_in_rounds, quartiles

    copies, limits, notes = _copies(shape, sizes)
    notes, facts, turns = dict(notes), {}, {}
    with torch.inference_mode():
        inputs = torch.randn(rows, shape[1], device=sizes.device).to(torch.bfloat16)
        for name, weights in copies.items():
            calls = packed_calls(weights, inputs) if "%" in name else dense_calls(weights, inputs)
            reference = weights[0] if name == "dense" else unpack(copies[name if "%" in name else "50%"][0])
            try:
                error = relative_error(calls[0](), inputs, reference)
                if error > TOLERANCE:
                    notes[name] = f"wrong: the error is {error:.3g} of the largest output"
                    continue
                turns[name] = in_turn(calls, sizes.device)
            except Exception as error:  # whatever a compiler or a library raises
                # After an error of the device, all further calls of the process fail.
                if name == "dense" or "CUDA error" in str(error):
                    raise
                notes[name] = first_line(error)
                continue
            facts[name] = {"error": error} | ({"limit": limits[name]} if name in limits else {})

        def quantities(name: str) -> Callable[[], float]:
            run, products = timed(turns[name].call, sizes.device), turns[name].products
            return lambda: run() / products

        def compared(values: list[float], dense: list[float]) -> dict[str, dict[str, float]]:
            ratios = [other / one for one, other in zip(values, dense, strict=True)]
            return {"seconds": quartiles(values), "speedup": quartiles(ratios)}

        functions = {name: quantities(name) for name in turns}
        found = measure_in_rounds(functions, "dense", compared, sizes.layer_repeats, 2, ROUNDS)
    return Result(timed={name: as_timed(one, facts[name]) for name, one in found.items()}, notes=notes)


def as_timed(measurement: Any, facts: dict[str, float]) -> Timed:
    """Return the record of a `patch.inference.timing.Measurement`."""
    quantities = {name: Quartiles(**found) for name, found in measurement.quantities.items()}
    return Timed(quantities=quantities, noisy=measurement.noisy, rounds=measurement.rounds, facts=facts)


def relative_error(output: Any, inputs: Any, weight: Any) -> float:
    """Return the largest error of a product as a fraction of the largest output."""
    expected = inputs.float() @ weight.float().T
    return float((output.float() - expected).abs().max() / expected.abs().max())
