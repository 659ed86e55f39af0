"""Table of the paper's numbers for models that are not comparable."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from patch.pipeline.reporting.layout import Layout
from patch.pipeline.reporting.published_table import published_table
from patch.pipeline.reporting.render import to_text, write_table
from patch.pipeline.results.collect import collect
from patch.pipeline.results.published import published_value
from patch.pipeline.runs.run import ModelInfo, Run


def test_each_number_is_the_papers(experiment: Any) -> None:
    table = published_table(experiment.frame, experiment.models, experiment.published)
    assert [(heading.model.title, heading.text) for heading in table.header] == [
        ("Qwen2.5-0.5B", "Acc. (%) ↑"),
        ("Qwen2.5-0.5B", "PPL ↓"),
        ("Llama-2-7B", "Acc. (%) ↑"),
        ("Llama-2-7B", "PPL ↓"),
        ("Llama-2-7B", "Speedup, A6000"),
        ("Llama-2-7B", "Speedup, A100"),
    ]
    expected = {}
    for run in experiment.expected:
        model = next(model for model in experiment.models if model.name == run.model)
        method = "PATCH" if run.method.startswith("patch") else run.method
        for metric in ("accuracy", "perplexity"):
            arguments = (run.method, run.pattern, run.sparsity, metric, None, run.quantization)
            value = published_value(experiment.published, model.published, *arguments)
            if value is not None and not model.comparable:
                row = run.sparsity, method.lower(), run.pattern, run.quantization
                expected[row, model.published, metric] = value
    quantizations = {"": None, "AbsMax": "absmax", "AbsMax + SLiM-LoRA": "slim-lora"}
    found = {}
    for row in table.rows:
        pattern, _, quantization = row.pattern.partition(", ")
        for heading, measure in zip(table.header, row.measures, strict=True):
            if measure and heading.metric in ("accuracy", "perplexity"):
                key = row.sparsity, row.method.lower(), pattern.split(" ")[0], quantizations[quantization]
                found[key, heading.model.published, heading.metric] = measure.value
    assert found == expected and len(found) > 30


def test_rows_are_named_as_in_the_paper(one_seed: Any) -> None:
    table = published_table(one_seed.frame, one_seed.models, one_seed.published)
    patch = [row for row in table.rows if row.method == "PATCH"]
    assert {row.pattern.split(",")[0] for row in patch} == {"hybrid 128×128"}
    assert [row.sparsity for row in table.rows] == sorted(
        (row.sparsity for row in table.rows), key=lambda s: (s > 0, -s)
    )
    speeds = {
        row.sparsity: [m and round(m.value, 2) for m in row.measures[4:]] for row in patch if "," not in row.pattern
    }
    assert speeds == {0.45: [1.38, 1.16], 0.35: [1.27, 1.11], 0.25: [1.18, 1.07]}
    assert "Achieved (%)" not in [name for _, name in Layout.of(table).texts.columns]
    assert table.notes[0].startswith("Qwen2-mini stands for Qwen/Qwen2.5-0.5B. Llama-mini stands for meta-llama/")


def test_compared_tile_sizes_keep_their_size(one_seed: Any, tmp_path: Path) -> None:
    qwen = one_seed.models[0]
    first = next(r for r in one_seed.records if r.run.method == "patch-joint" and r.run.sparsity == 0.45)
    record = first.model_copy(update={"run": first.run.model_copy(update={"model": "qwen", "tile": 16})})
    others = [record.model_copy(update={"run": record.run.model_copy(update={"tile": tile})}) for tile in (8, 32)]
    varied = record.model_copy(update={"run": record.run.model_copy(update={"variant": "target=block"})})
    frame = collect([record, *others, varied], [qwen], one_seed.published)
    table = published_table(frame, [qwen], one_seed.published)
    sizes = one_seed.published.tile_size_ppl_qwen_joint["45"]
    found = {row.pattern: row.measures[-1].value for row in table.rows if not row.setting}
    assert found == {f"hybrid {tile}×{tile}": sizes[str(tile)] for tile in (8, 16, 32)}
    assert [(row.pattern, row.setting) for row in table.rows if row.setting] == [("hybrid 128×128", "target: block")]
    header = next(csv.reader(write_table(table, tmp_path / "published")[0].open()))
    assert header == ["sparsity_percent", "method", "pattern", "setting", "qwen_perplexity"]


def test_two_models_that_stand_for_one_share_its_columns(one_seed: Any) -> None:
    twin = one_seed.models[0].model_copy(update={"name": "twin", "title": "Twin"})
    dense = next(r for r in one_seed.records if r.run.model == "qwen" and r.run.method == "dense")
    other = dense.model_copy(update={"run": dense.run.model_copy(update={"model": "twin"})})
    models = [one_seed.models[0], twin]
    table = published_table(collect([dense, other], models, one_seed.published), models, one_seed.published)
    assert len(table.header) == 2 and len(table.rows) == 1
    assert table.notes[0].startswith("Qwen2-mini stands for Qwen/Qwen2.5-0.5B. Twin stands for Qwen/Qwen2.5-0.5B.")


@pytest.mark.parametrize("published", [None, "Qwen/Qwen2.5-0.5B"])
def test_without_published_rows_the_table_is_empty(one_seed: Any, published: str | None) -> None:
    model = ModelInfo(name="qwen", title="Mini", variant="joint", published=published, comparable=False, tile=16)
    record = next(r for r in one_seed.records if r.run.model == "qwen" and r.run.method == "wanda")
    run = Run(model="qwen", method="mine", pattern="2:4", sparsity=0.5)
    frame = collect([record.model_copy(update={"run": run})], [model], one_seed.published)
    table = published_table(frame, [model], one_seed.published)
    assert table.rows == () and "The paper has none of the rows" in to_text(table)
