"""Tables, figures and the summary of experiments with more metrics of a task than `acc`, and with none."""

from __future__ import annotations

from typing import Any

import pytest

from patch.evaluation.metric import Metric
from patch.pipeline.reporting.pareto import pareto
from patch.pipeline.reporting.table import Table
from patch.pipeline.reporting.tables import build_table
from patch.pipeline.reporting.uncertainty import uncertainty
from patch.pipeline.results.collect import mean_chance
from patch.pipeline.results.differences import paired_differences

EXTRA = {"rhyme/acc_norm": 0.625, "sums/strict-match": 0.125, "sums/flexible-extract": 0.25}


@pytest.fixture
def extended(one_seed: Any) -> Any:
    """Return the experiment with `acc_norm` of one task, and a generative task with two filters."""
    extra = {name: Metric(value=value, stderr=0.01, samples=200) for name, value in EXTRA.items()}
    one_seed.records = [one.model_copy(update={"metrics": one.metrics | extra}) for one in one_seed.records]
    return one_seed


@pytest.fixture
def alone(one_seed: Any) -> Any:
    """Return the experiment with perplexity alone."""
    one_seed.records = [
        one.model_copy(update={"metrics": {"perplexity": one.metrics["perplexity"]}}) for one in one_seed.records
    ]
    return one_seed


def build(name: str, experiment: Any, **options: Any) -> Table:
    return build_table(name, experiment.frame, experiment.models, experiment.expected, **options)


def test_other_metrics_have_columns_after_the_mean(extended: Any) -> None:
    table = build("tasks", extended)
    names = [heading.text for heading in table.header]
    mean = names.index("Mean ↑")
    assert "rhyme ↑" in names[:mean] and not any("/" in name for name in names[:mean])
    assert names[mean + 1 :] == [f"{name} ↑" for name in EXTRA]
    for row in table.rows:
        values = dict(zip(names, row.measures, strict=True))
        assert [values[f"{name} ↑"].value for name in EXTRA] == [100 * value for value in EXTRA.values()]
    assert [heading.text for heading in build("tile", extended).header] == ["Acc. (%) ↑", "PPL ↓"]


def test_chance_and_the_uncertainty_do_not_count_them(extended: Any) -> None:
    assert mean_chance(extended.records, "llama") == pytest.approx(100 * (4 * 0.25 + 2 * 0.5) / 6)
    text = uncertainty(extended.records, paired_differences([]), extended.models, extended.expected)
    assert "rhyme 200, sums 200" in text and "acc\\_norm" not in text


def test_generated_answers_alone_have_no_mean(alone: Any) -> None:
    metric = Metric(value=0.125, samples=200)
    alone.records = [
        one.model_copy(update={"metrics": one.metrics | {"sums/strict-match": metric}}) for one in alone.records
    ]
    assert [heading.text for heading in build("tasks", alone).header] == ["sums/strict-match ↑"]
    assert [heading.text for heading in build("tile", alone).header] == ["PPL ↓"]


def test_few_shot_examples_are_in_a_note(one_seed: Any) -> None:
    note = "Few-shot examples: rhyme 5, order 25."
    for name in ("tasks", "tile"):
        assert note in build(name, one_seed, fewshot={"rhyme": 5, "order": 25}).notes
        assert not any("Few-shot" in one for one in build(name, one_seed, fewshot={}).notes)
    assert note not in build("density", one_seed, fewshot={"rhyme": 5, "order": 25}).notes


def test_few_shot_numbers_are_not_compared_with_the_paper(one_seed: Any) -> None:
    def published(experiment: Any) -> dict[str, bool]:
        frame = experiment.frame
        return frame[frame["model"] == "gemma"].groupby("metric")["published"].any().to_dict()

    assert published(one_seed) | {"perplexity": True, "accuracy": True, "piqa": True, "mmlu": True} == published(
        one_seed
    )
    one_seed.records = [
        one.model_copy(
            update={"metrics": one.metrics | {"mmlu": one.metrics["mmlu"].model_copy(update={"fewshot": 5})}}
            if one.run.model == "gemma"
            else {}
        )
        for one in one_seed.records
    ]
    found = published(one_seed)
    assert found["perplexity"] and found["piqa"] and not found["mmlu"] and not found["accuracy"]


def test_perplexity_alone(alone: Any) -> None:
    table = build("tile", alone)
    assert [heading.text for heading in table.header] == ["PPL ↓"] and all(row.measures[0] for row in table.rows)
    other, same, _ = alone.models
    assert [axis.get_ylabel() for axis in pareto(alone.frame, same).axes] == ["Perplexity (log scale)"]
    assert len(pareto(alone.frame, other).axes) == 2
    text = uncertainty(alone.records, paired_differences([]), alone.models, alone.expected)
    assert "Perplexity is measured on 400 sequences. There is one seed" in text and "ccuracy" not in text
    assert mean_chance(alone.records, "llama") is None


def test_a_table_without_records_has_both_columns(one_seed: Any) -> None:
    one_seed.records = []
    assert [heading.metric for heading in build("tile", one_seed).header] == ["accuracy", "perplexity"]
