"""Findings of an experiment: sentences on the paper's claims, computed from paired differences and measured speeds.

docs/methods.md describes the rules. A claim needs every row that it compares, so a partial experiment has fewer
findings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from patch.methods import get_method
from patch.pipeline.reporting.comparison import ERRORS
from patch.pipeline.reporting.units import metric_value
from patch.pipeline.results.differences import Differences
from patch.pipeline.results.order import QUANTIZATIONS, percent, run_order, run_title
from patch.pipeline.results.speed import SpeedRecord, Timed
from patch.pipeline.runs.run import ModelInfo, Run

READING = (
    f"±: standard error of the paired difference. Rows cannot be distinguished if they differ by at most {ERRORS} "
    "standard errors; their difference is printed with its sign, first row minus second row. Speedups: median ± half "
    "the interquartile range; a speed cannot be distinguished from dense if this range contains 1."
)
NOUNS = {"perplexity": "perplexity", "accuracy": "mean accuracy"}
# Sign of an effect -> predicate, object, and the words before the numbers.
Clauses = Mapping[int, tuple[str, str, str]]


@dataclass(frozen=True)
class Effect:
    """Effect on one model: a paired difference, or a speedup.

    Attributes:
        model: title of the model.
        sign: 1 or -1 for a positive or negative effect, 0 if it cannot be distinguished from none.
        value: number that orders effects.
        text: printed number with its error.
        other: title of the row that the effect is relative to.
        detail: printed in brackets after the number.
    """

    model: str
    sign: int
    value: float
    text: str
    other: str = ""
    detail: str = ""

    @classmethod
    def of_difference(cls, model: str, value: float, error: float, unit: str = "", **titles: str) -> Effect:
        """Return the effect of a paired difference with its standard error."""
        sign = 0 if abs(value) <= ERRORS * error else int(math.copysign(1, value))
        decimals = len(metric_value(value, "perplexity").partition(".")[2])
        if error > 0:
            # At least one digit of the error is not zero.
            decimals = max(decimals, -math.floor(math.log10(error)))
        plus = "" if sign else "−" if value < 0 else "+"
        return cls(model, sign, value, f"{plus}{abs(value):.{decimals}f} ± {error:.{decimals}f}{unit}", **titles)


@dataclass(frozen=True)
class Rows:
    """Rows of the models and their paired differences."""

    runs: Sequence[Run]
    differences: Differences

    def of(self, model: ModelInfo, pattern: str, quantization: str | None = None) -> list[Run]:
        """Return a run of each row with a pattern, without fine-tuned rows and ablations."""
        kind = model.name, pattern, quantization, None
        runs = (run for run in self.runs if (run.model, run.pattern, run.quantization, run.finetune) == kind)
        return list({run.row: run for run in runs if run.variant is None or run.imported}.values())

    def hybrid(self, model: ModelInfo, quantization: str | None = None) -> dict[float, Run]:
        """Return a hybrid run for each sparsity, lowest first.

        If there are several, the model's variant of PATCH comes first, then masks of this experiment before imported
        ones, then the experiment's tile.
        """

        def rank(run: Run) -> tuple:
            variant = run.method != f"patch-{model.variant}"
            return run.sparsity, variant, run.imported is not None, run.tile != model.tile, run_order(run)

        found: dict[float, Run] = {}
        for run in sorted(self.of(model, "hybrid", quantization), key=rank):
            found.setdefault(run.sparsity, run)
        return found

    def difference(self, metric: str, a: Run, b: Run) -> tuple[float, float] | None:
        """Return the difference of two rows of a model with its standard error, or None if one of them is unknown."""
        key = a.model, metric, a.row, b.row
        value, error = self.differences.difference(*key), self.differences.stderr(*key)
        return None if value is None or error is None else (value, error)

    def best(self, metric: str, rows: Sequence[Run], reference: Run) -> Run | None:
        """Return the best of ``rows`` by the differences from ``reference``, or None if one is unknown."""
        differences = [
            0.0 if row == reference else self.differences.difference(row.model, metric, row.row, reference.row)
            for row in rows
        ]
        known = [value for value in differences if value is not None]
        if not rows or len(known) < len(rows):
            return None
        return rows[known.index(min(known) if metric == "perplexity" else max(known))]

    def against_best(self, metric: str, model: ModelInfo, row: Run, others: Sequence[Run]) -> Effect | None:
        """Return the difference of a row and the best of ``others``, or None if one is unknown."""
        best = self.best(metric, others, row)
        found = best and self.difference(metric, row, best)
        if not found:
            return None
        unit = " points" if metric == "accuracy" else ""
        return Effect.of_difference(model.title, *found, unit, other=_title(best))


def find_findings(
    differences: Differences, models: Sequence[ModelInfo], runs: Sequence[Run], speeds: Sequence[SpeedRecord] = ()
) -> list[str]:
    """Return a text of a few sentences for each claim that the measurements answer.

    Args:
        differences: paired differences.
        models: models of the experiment.
        runs: expected runs.
        speeds: speed records.
    """
    rows = Rows(runs, differences)
    quantized = (_hybrid(rows, models, "perplexity", name) for name in QUANTIZATIONS)
    found = [
        " ".join(filter(None, (_hybrid(rows, models, metric) for metric in NOUNS))),
        _learned(rows, models),
        _ratios(rows, models),
        next(filter(None, quantized), ""),
        _speed(models, speeds),
    ]
    return [text for text in found if text]


def _hybrid(rows: Rows, models: Sequence[ModelInfo], metric: str, quantization: str | None = None) -> str:
    """Compare PATCH at the largest sparsity with the best 2:4 method."""
    hybrid = {model.name: rows.hybrid(model, quantization) for model in models}
    level = max((sparsity for found in hybrid.values() for sparsity in found), default=0.0)
    effects = [
        rows.against_best(metric, model, hybrid[model.name][level], rows.of(model, "2:4", quantization))
        for model in models
        if level in hybrid[model.name]
    ]
    weights = f" with quantized weights ({QUANTIZATIONS[quantization]})" if quantization else ""
    other = "the best quantized 2:4 method" if quantization else "the best 2:4 method"
    return _compared(f"PATCH at {percent(level)} %{weights}", other, metric, effects)


def _learned(rows: Rows, models: Sequence[ModelInfo]) -> str:
    """Compare the perplexities of the best learned and the best one-shot 2:4 method."""
    effects: dict[str, list[Effect]] = {}
    for model in models:
        found = rows.of(model, "2:4")
        learned, one_shot = ([row for row in found if get_method(row.method).stage == s] for s in ("learn", "prune"))
        best = rows.best("perplexity", learned, one_shot[0]) if one_shot else None
        effect = best and rows.against_best("perplexity", model, best, one_shot)
        if effect:
            effects.setdefault(_title(best), []).append(effect)
    subject = f"the best learned 2:4 method ({' or '.join(effects)})"
    return _compared(subject, "the best one-shot 2:4 method", "perplexity", list(chain(*effects.values())))


def _ratios(rows: Rows, models: Sequence[ModelInfo]) -> str:
    """Compare the perplexities of PATCH at neighboring sparsities.

    The effect on a model is that of its least certain step, so it is positive only if that of every step is.
    """
    hybrid = {model.name: rows.hybrid(model) for model in models}
    levels = sorted({sparsity for found in hybrid.values() for sparsity in found})
    effects = []
    for model in models:
        found = hybrid[model.name]
        if len(levels) < 2 or list(found) != levels:
            continue
        steps = {pair: rows.difference("perplexity", found[pair[1]], found[pair[0]]) for pair in pairwise(levels)}
        known = {pair: step for pair, step in steps.items() if step}
        if len(known) == len(steps):
            (low, high), step = min(known.items(), key=lambda item: _certainty(*item[1]))
            detail = f"{percent(low)} to {percent(high)} %"
            effects.append(Effect.of_difference(model.title, *step, detail=detail))
    ratios = ", ".join(map(percent, levels))
    clauses = {
        1: (f"rises with each step of the sparsity ({ratios} %)", "", "; least certain step: "),
        -1: ("falls at a step of the sparsity", "", ", by "),
        0: ("has a step of the sparsity that cannot be distinguished", "", ": "),
    }
    return _sentences("the perplexity of PATCH", clauses, effects)


def _speed(models: Sequence[ModelInfo], speeds: Sequence[SpeedRecord]) -> str:
    """Compare the speed of the fastest PATCH mask with dense, or that of the fastest mask if PATCH was not timed."""
    records = {record.model: record for record in speeds}
    masked = [(model.title, _masked(records[model.name])) for model in models if model.name in records]
    effects = []
    for title, timed in masked:
        if timed:
            fastest = max(timed, key=lambda one: one.speedup.median)
            speedup, detail = fastest.speedup, f"{percent(fastest.run.sparsity)} %"
            text = f"{speedup.median:.2f} ± {speedup.spread:.2f}"
            sign = (speedup.low > 1) - (speedup.high < 1)
            effects.append(Effect(title, sign, speedup.median, text, detail=detail))
    of_patch = any(one.run.pattern == "hybrid" for _, timed in masked for one in timed)
    dense = f"the dense model ({' and '.join(dict.fromkeys(record.hardware for record in speeds))})"
    clauses = {
        1: ("is faster", f" than {dense}", ", with a speedup of "),
        -1: ("is slower", f" than {dense}", ", with a speedup of "),
        0: ("cannot be distinguished", f" from {dense} in speed", ": speedup "),
    }
    return _sentences(f"the fastest {'PATCH ' if of_patch else ''}mask", clauses, effects)


def _masked(record: SpeedRecord) -> list[Timed]:
    """Return the timings with masks, only those of hybrid masks if there are any, without noisy speedups."""
    masked = [timed for timed in record.timed if timed.run.pattern != "dense"]
    hybrid = [timed for timed in masked if timed.run.pattern == "hybrid"]
    return [timed for timed in hybrid or masked if "speedup" not in timed.noisy]


def _compared(subject: str, other: str, metric: str, effects: Iterable[Effect | None]) -> str:
    """Return the sentences on the differences of two rows in one metric."""
    found, noun = [effect for effect in effects if effect], NOUNS[metric]
    other = f"{other} ({' or '.join(dict.fromkeys(effect.other for effect in found))})"
    lower, higher = ((f"has a {word} {noun}", f" than {other}", ", by ") for word in ("lower", "higher"))
    clauses = {-1: lower, 1: higher} if metric == "perplexity" else {1: higher, -1: lower}
    return _sentences(subject, clauses | {0: ("cannot be distinguished", f" from {other} in {noun}", ": ")}, found)


def _sentences(subject: str, clauses: Clauses, effects: Sequence[Effect]) -> str:
    """Return one sentence for each sign of the effects, in the order of ``clauses``.

    A sentence on several models has their number, and the smallest and the largest effect.
    """
    several = len(effects) > 1
    sentences: list[str] = []
    for sign, (predicate, other, before) in clauses.items():
        chosen = [effect for effect in effects if effect.sign == sign]
        if chosen:
            start = f"It {predicate}" if sentences else f"{subject} {predicate}{other}"
            models = f" on {len(chosen)} of {len(effects)} models" if several else ""
            # Differences with a sign of their own are sorted by it, the others by size.
            chosen.sort(key=lambda effect: abs(effect.value) if effect.sign else effect.value)
            span = " to ".join(_number(effect, several) for effect in dict.fromkeys((chosen[0], chosen[-1])))
            sentences.append(f"{start}{models}{before}{span}.")
    text = " ".join(sentences)
    return text[:1].upper() + text[1:] if several else "".join(f"{effect.model}: {text}" for effect in effects)


def _number(effect: Effect, named: bool) -> str:
    about = ", ".join(filter(None, (effect.model if named else "", effect.detail)))
    return effect.text + (f" ({about})" if about else "")


def _title(run: Run) -> str:
    return run_title(run) + (f", imported as {run.imported}" if run.imported else "")


def _certainty(value: float, error: float) -> float:
    return value / error if error else math.copysign(math.inf, value)
