"""Findings against numbers that the tests compute themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from patch.pipeline.reporting.findings import find_findings
from patch.pipeline.results.differences import COLUMNS, Differences, paired_differences
from patch.pipeline.results.samples import Samples
from patch.pipeline.results.speed import SpeedRecord
from patch.pipeline.runs.run import ModelInfo, Run

LLAMA = ModelInfo(name="llama", title="Llama", variant="tile", tile=16)
QWEN = ModelInfo(name="qwen", title="Qwen", variant="joint", tile=16)
GEMMA = ModelInfo(name="gemma", title="Gemma", variant="joint", tile=16)


def one(method: str, model: ModelInfo = LLAMA, **changes: Any) -> Run:
    return Run(**{"model": model.name, "method": method, "pattern": "2:4", "sparsity": 0.5} | changes)


def patch(sparsity: float, model: ModelInfo = LLAMA, **changes: Any) -> Run:
    values = {"model": model.name, "method": f"patch-{model.variant}", "pattern": "hybrid", "sparsity": sparsity}
    return Run(**values | {"tile": 16} | changes)


def differences(*lines: tuple[Run, Run, float, float], metric: str = "perplexity") -> pd.DataFrame:
    rows = [(a.model, metric, a.sparsity, a.row, b.row, value, error, 10, 1, "abcd") for a, b, value, error in lines]
    return pd.DataFrame(rows, columns=COLUMNS)


def found(*frames: pd.DataFrame, models: Sequence[ModelInfo] = (LLAMA,), runs: Sequence[Run]) -> list[str]:
    return find_findings(Differences(pd.concat(frames)), models, runs)


MASKLLM, THANOS, WANDA, P45, P35, P25 = (
    one("maskllm"),
    one("thanos"),
    one("wanda"),
    patch(0.45),
    patch(0.35),
    patch(0.25),
)


@pytest.mark.parametrize(
    ("difference", "error", "text"),
    [
        (-0.9, 0.3, "PATCH at 45 % has a lower perplexity than the best 2:4 method (MaskLLM), by 0.90 ± 0.30."),
        (0.9, 0.3, "PATCH at 45 % has a higher perplexity than the best 2:4 method (MaskLLM), by 0.90 ± 0.30."),
        (
            -0.3,
            0.5,
            "PATCH at 45 % cannot be distinguished from the best 2:4 method (MaskLLM) in perplexity: −0.30 ± 0.50.",
        ),
        (
            0.6,
            0.3,
            "PATCH at 45 % cannot be distinguished from the best 2:4 method (MaskLLM) in perplexity: +0.60 ± 0.30.",
        ),
        (
            0.0,
            0.0,
            "PATCH at 45 % cannot be distinguished from the best 2:4 method (MaskLLM) in perplexity: +0.00 ± 0.00.",
        ),
        (-0.02, 0.004, "PATCH at 45 % has a lower perplexity than the best 2:4 method (MaskLLM), by 0.020 ± 0.004."),
        (-250.4, 30.2, "PATCH at 45 % has a lower perplexity than the best 2:4 method (MaskLLM), by 250.4 ± 30.2."),
    ],
)
def test_two_standard_errors_decide(difference: float, error: float, text: str) -> None:
    assert found(differences((P45, MASKLLM, difference, error)), runs=[MASKLLM, P45]) == [f"Llama: {text}"]


def test_accuracy_is_in_points_and_higher_is_better() -> None:
    worse = differences((P45, MASKLLM, 1.5, 0.5), (P45, WANDA, 2.5, 0.5), metric="accuracy")
    (text,) = found(worse, runs=[MASKLLM, WANDA, P45])
    assert (
        text
        == "Llama: PATCH at 45 % has a higher mean accuracy than the best 2:4 method (MaskLLM), by 1.50 ± 0.50 points."
    )
    both = differences((P45, MASKLLM, 0.5, 0.1), (P45, WANDA, -2.5, 0.5))
    (text,) = found(worse, both, runs=[MASKLLM, WANDA, P45])
    assert text.startswith(
        "Llama: PATCH at 45 % has a higher perplexity than the best 2:4 method (MaskLLM), by 0.50 ± 0.10. "
    )


def test_several_models_are_counted_with_the_range() -> None:
    models, values = [LLAMA, QWEN, GEMMA], {"llama": (-0.3, 0.1), "qwen": (-0.9, 0.2), "gemma": (0.1, 0.2)}
    runs, lines = [], []
    for model in models:
        others = [one("maskllm", model), one("thanos", model)]
        runs += [*others, patch(0.45, model)]
        # Thanos is the better one on Gemma.
        for row, shift in zip(others, (0.0, 0.5 if model == GEMMA else -0.5), strict=True):
            best = shift == 0 if model != GEMMA else shift > 0
            value, error = values[model.name]
            lines.append((runs[-1], row, value if best else value - 0.5, error))
    (text, learned) = found(differences(*lines), differences(*learned_lines(models)), models=models, runs=runs)
    assert text == (
        "PATCH at 45 % has a lower perplexity than the best 2:4 method (MaskLLM or Thanos) on 2 of 3 models, by 0.30 ± "
        "0.10 (Llama) to 0.90 ± 0.20 (Qwen). It cannot be distinguished on 1 of 3 models: +0.10 ± 0.20 (Gemma)."
    )
    assert learned == (
        "The best learned 2:4 method (MaskLLM) has a higher perplexity than the best one-shot 2:4 method (Thanos) on 3 "
        "of 3 models, by 1.00 ± 0.10 (Llama) to 3.00 ± 0.10 (Gemma)."
    )


def learned_lines(models: Sequence[ModelInfo]) -> list[tuple[Run, Run, float, float]]:
    return [(one("maskllm", model), one("thanos", model), 1.0 + i, 0.1) for i, model in enumerate(models)]


def test_the_best_of_each_kind_is_compared() -> None:
    proxsparse, sparsegpt = one("proxsparse"), one("sparsegpt")
    perplexities = {WANDA: 47.0, sparsegpt: 41.0, THANOS: 40.5, proxsparse: 43.0, MASKLLM: 39.5}
    rows = list(perplexities)
    lines = [(a, b, perplexities[a] - perplexities[b], 0.1) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    (text,) = found(differences(*lines), runs=rows)
    assert text == (
        "Llama: the best learned 2:4 method (MaskLLM) has a lower perplexity than the best one-shot 2:4 method "
        "(Thanos), by 1.00 ± 0.10."
    )


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (
            [(0.5, 0.1), (0.9, 0.1)],
            "rises with each step of the sparsity (25, 35, 45 %); least certain step: 0.50 ± 0.10 (25 to 35 %).",
        ),
        (
            [(0.5, 0.1), (0.1, 0.1)],
            "has a step of the sparsity that cannot be distinguished: +0.10 ± 0.10 (35 to 45 %).",
        ),
        ([(-0.5, 0.1), (0.9, 0.1)], "falls at a step of the sparsity, by 0.50 ± 0.10 (25 to 35 %)."),
        ([(-0.5, 0.1), (0.0, 0.1)], "falls at a step of the sparsity, by 0.50 ± 0.10 (25 to 35 %)."),
    ],
)
def test_every_step_of_the_sparsity_counts(steps: list[tuple[float, float]], text: str) -> None:
    lines = [(P35, P25, *steps[0]), (P45, P35, *steps[1])]
    assert found(differences(*lines), runs=[P45, P25, P35]) == [f"Llama: the perplexity of PATCH {text}"]


def test_quantized_rows_are_compared_with_each_other() -> None:
    def quantized(run: Run, kind: str) -> Run:
        return run.model_copy(update={"quantization": kind})

    rows = [quantized(run, kind) for run, kind in product((MASKLLM, P45), ("absmax", "slim-lora"))]
    absmax, lora = (rows[2], rows[0], 0.5, 0.1), (rows[3], rows[1], -0.5, 0.1)
    start = "Llama: PATCH at 45 % with quantized weights"
    assert found(differences(absmax, lora), runs=rows) == [
        f"{start} (AbsMax) has a higher perplexity than the best quantized 2:4 method (MaskLLM), by 0.50 ± 0.10."
    ]
    assert found(differences(lora), runs=[*rows[1:2], rows[3]]) == [
        f"{start} (AbsMax + SLiM-LoRA) has a lower perplexity than the best quantized 2:4 method (MaskLLM), by 0.50 ± "
        "0.10."
    ]


def test_a_claim_needs_all_its_rows() -> None:
    known = (P45, MASKLLM, -0.9, 0.3)
    assert found(differences(known), runs=[MASKLLM, WANDA, P45]) == [], "Wanda has no result yet"
    assert found(differences((P45, MASKLLM, -0.9, math.nan)), runs=[MASKLLM, P45]) == [], "no error"
    assert found(differences(), runs=[MASKLLM, P45]) == found(differences(), runs=[]) == []
    steps = differences((P35, P25, 0.5, 0.1))
    assert found(steps, runs=[P25, P35, P45]) == []
    # A model without the largest sparsity is not counted.
    other = [one("maskllm", QWEN), patch(0.35, QWEN)]
    more = differences(known, (other[1], other[0], -2.0, 0.1))
    (text,) = found(more, models=[LLAMA, QWEN], runs=[MASKLLM, P45, *other])
    assert text.startswith("Llama: PATCH at 45 % has a lower perplexity")


def test_the_rows_that_claims_choose() -> None:
    """Check that ablations and fine-tuned rows are ignored, and which PATCH row is preferred."""
    ignored = [patch(0.45, variant="lr=1.0"), MASKLLM.model_copy(update={"finetune": "lora"})]
    others = [patch(0.45, method="patch-joint"), patch(0.45, tile=32), patch(0.45, variant="import=theirs")]
    theirs = one("maskllm", variant="import=theirs")
    runs = [*others, *ignored, P45, theirs]
    lines = [(run, theirs, float(place), 0.1) for place, run in enumerate([P45, *others, *ignored], 1)]
    (text,) = found(differences(*lines), runs=runs)
    assert "the best 2:4 method (MaskLLM, imported as theirs), by 1.00" in text
    (text,) = found(differences(*lines), runs=[run for run in runs if run != P45])
    assert "by 3.00" in text, "another tile comes before an imported mask and the other variant"
    (text,) = found(differences(*lines), runs=[others[0], others[2], theirs])
    assert "by 4.00" in text
    assert found(differences(*lines), runs=[*ignored, theirs]) == []


def test_a_finding_of_samples() -> None:
    """Compute the difference and its error from the samples, the error by the delta method."""
    rng, dense = np.random.default_rng(0), np.random.default_rng(1).normal(3.0, 0.5, 2000)
    shifts = {THANOS: 0.06, MASKLLM: 0.04, P45: 0.02}
    losses = {run: dense + rng.normal(shift, 0.05, 2000) for run, shift in shifts.items()}
    samples = [
        Samples.model_construct(run=run, samples={"perplexity": values}, config_digest="d")
        for run, values in losses.items()
    ]
    first, second = find_findings(Differences(paired_differences(samples)), [LLAMA], list(losses))
    for text, (a, b) in ((first, (P45, MASKLLM)), (second, (MASKLLM, THANOS))):
        perplexities = [math.exp(losses[run].mean()) for run in (a, b)]
        influence = perplexities[0] * losses[a] - perplexities[1] * losses[b]
        value, error = map(float, re.search(r"by ([\d.]+) ± ([\d.]+)\.$", text).groups())
        assert value == pytest.approx(perplexities[1] - perplexities[0], abs=0.005)
        assert error == pytest.approx(influence.std(ddof=1) / math.sqrt(2000), rel=0.15)


@pytest.fixture
def speeds(speed_record: Callable) -> Callable[..., SpeedRecord]:
    """Return a function that makes the speed record of a model with given speedups of its PATCH masks."""

    def make(model: ModelInfo, *speedups: tuple[float, float, float]) -> SpeedRecord:
        raw = speed_record(model.name, model.variant)
        hybrid = [timed for timed in raw["timed"] if timed["run"]["pattern"] == "hybrid"]
        for timed, (low, median, high) in zip(hybrid, speedups, strict=True):
            timed["speedup"] = {"low": low, "median": median, "high": high}
        return SpeedRecord.model_validate(raw)

    return make


def test_the_fastest_patch_mask_is_compared_with_dense(speeds: Callable[..., SpeedRecord]) -> None:
    nothing = Differences(differences())
    faster = speeds(LLAMA, (1.1, 1.2, 1.25), (1.0, 1.15, 1.3))
    (text,) = find_findings(nothing, [LLAMA], [], [faster])
    assert text == (
        "Llama: the fastest PATCH mask is faster than the dense model (A CPU @ 2 GHz), with a speedup of 1.20 ± 0.07 "
        "(45 %)."
    )
    slower, equal = speeds(QWEN, (0.6, 0.7, 0.8), (0.8, 0.9, 0.99)), speeds(GEMMA, (0.9, 1.01, 1.1), (0.8, 0.9, 1.2))
    (text,) = find_findings(nothing, [LLAMA, QWEN, GEMMA], [], [equal, slower, faster])
    assert text == (
        "The fastest PATCH mask is faster than the dense model (A CPU @ 2 GHz) on 1 of 3 models, with a speedup of "
        "1.20 ± 0.07 (Llama, 45 %). It is slower on 1 of 3 models, with a speedup of 0.90 ± 0.09 (Qwen, 25 %). It "
        "cannot be distinguished on 1 of 3 models: speedup 1.01 ± 0.10 (Gemma, 45 %)."
    )


def test_noisy_speedups_are_no_finding(speeds: Callable[..., SpeedRecord]) -> None:
    """Neither they nor the speedup of a 2:4 mask in their place."""
    raw = speeds(LLAMA, (1.1, 1.2, 1.25), (1.0, 1.15, 1.3)).model_dump(by_alias=True)
    for timed in raw["timed"]:
        if timed["run"]["pattern"] == "hybrid":
            timed |= {"rounds": 3, "noisy": ["speedup"]}
    assert find_findings(Differences(differences()), [LLAMA], [], [SpeedRecord.model_validate(raw)]) == []


def test_without_patch_the_fastest_mask_is_compared(speed_record: Callable) -> None:
    raw = speed_record("llama", "tile")
    raw["timed"] = [timed for timed in raw["timed"] if timed["run"]["pattern"] != "hybrid"]
    (text,) = find_findings(Differences(differences()), [LLAMA], [], [SpeedRecord.model_validate(raw)])
    assert text.startswith("Llama: the fastest mask is faster than the dense model")
    raw["timed"] = raw["timed"][:1]
    assert find_findings(Differences(differences()), [LLAMA], [], [SpeedRecord.model_validate(raw)]) == []
