"""Each number of the paper has a run in config/paper.yaml or in an ablation, and is printed beside its result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from patch.pipeline.config.load import load_experiment
from patch.pipeline.results.published import FROZEN_MASKS, TARGETS, TILE_PRIORS, Published, published_value
from patch.pipeline.results.speed import PAPER_MODEL, published_speedup
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run

ROOT = Path(__file__).parents[4]
NUMBERS = json.loads((ROOT / "config/published.json").read_text())
QWEN = "Qwen/Qwen2.5-0.5B"
# Table of the paper -> configuration with its runs.
CONFIGS = {
    "per_task": "paper",
    "unstructured_acc_ppl": "paper",
    "quantized_acc_ppl": "paper",
    "tile_size_ppl_qwen_joint": "ablations/tile-size",
    "global_vs_layer_ppl_qwen": "ablations/target",
    "fixed_mask_ppl_qwen": "ablations/frozen-mask",
    "tile_prior_ppl_qwen": "ablations/tile-prior",
}
THROUGHPUT = "throughput_tok_s_bs16_prompt128"
METHODS = ("magnitude", "wanda", "sparsegpt", "thanos", "proxsparse", "maskllm")


class Number(NamedTuple):
    """A number of the paper and the run that it belongs to."""

    model: str
    metric: str
    value: float
    method: str
    pattern: str
    sparsity: float
    tile: int | None = None
    quantization: str | None = None
    variant: str | None = None


def key_of(table: dict[str, str], title: str) -> str:
    """Return the key of the value ``title``."""
    return next(key for key, value in table.items() if value == title)


def patch(model: str, level: str) -> dict[str, Any]:
    method = f"patch-{NUMBERS['models'][model]['variant']}"
    return {"method": method, "pattern": "hybrid", "sparsity": int(level) / 100, "tile": 128}


def per_task() -> Iterator[Number]:
    for model, rows in NUMBERS["per_task"].items():
        for row in rows:
            name = row["method"].lower()
            run = {"method": name, "pattern": "2:4", "sparsity": 0.5}
            if name == "dense":
                run = {"method": name, "pattern": name, "sparsity": 0.0}
            elif name not in METHODS:
                run = patch(model, name.removeprefix("patch-"))
            for metric, value in {"accuracy": row["avg"], "perplexity": row["ppl"], **row["acc"]}.items():
                yield Number(model, metric, value, **run)


def pairs(table: str) -> Iterator[Number]:
    """Yield the numbers of the tables of unstructured pruning and of quantized weights."""
    ids = {model["title"]: name for name, model in NUMBERS["models"].items()}
    titles = NUMBERS[table]["cols"]
    for row, values in NUMBERS[table].items():
        if row == "cols":
            continue
        name, adapters = row.removesuffix("+SLiM-LoRA").lower(), row.endswith("+SLiM-LoRA")
        for title, (accuracy, perplexity) in zip(titles, values, strict=True):
            run: dict[str, Any] = {"method": name[:-2], "pattern": "unstructured", "sparsity": int(name[-2:]) / 100}
            if table == "quantized_acc_ppl":
                of_patch = name.startswith("patch")
                run |= patch(ids[title], name[-2:]) if of_patch else {"pattern": "2:4"}
                run["quantization"] = "slim-lora" if adapters else "absmax"
            yield Number(ids[title], "accuracy", accuracy, **run)
            yield Number(ids[title], "perplexity", perplexity, **run)


def ablation(table: str, key: str, method: str, names: dict[str, str]) -> Iterator[Number]:
    titles = NUMBERS[table]["cols"]
    for level in ("45", "35", "25"):
        for title, value in zip(titles, NUMBERS[table][level], strict=True):
            run = patch(QWEN, level)
            if title != "PATCH-Joint":
                run |= {"method": method, "variant": f"{key}={key_of(names, title)}"}
            yield Number(QWEN, "perplexity", value, **run)


def tile_sizes() -> Iterator[Number]:
    for level, values in NUMBERS["tile_size_ppl_qwen_joint"].items():
        for tile, value in values.items():
            yield Number(QWEN, "perplexity", value, **patch(QWEN, level) | {"tile": int(tile)})


def numbers(table: str) -> list[Number]:
    makers = {
        "per_task": per_task,
        "tile_size_ppl_qwen_joint": tile_sizes,
        "global_vs_layer_ppl_qwen": lambda: ablation("global_vs_layer_ppl_qwen", "target", "patch-joint", TARGETS),
        "fixed_mask_ppl_qwen": lambda: ablation("fixed_mask_ppl_qwen", "frozen_mask", "patch-tile", FROZEN_MASKS),
        "tile_prior_ppl_qwen": lambda: ablation("tile_prior_ppl_qwen", "tile_prior", "patch-joint", TILE_PRIORS),
    }
    return list(makers.get(table, lambda: pairs(table))())


def plan_of(name: str) -> Plan:
    return Plan(load_experiment(ROOT / f"config/{name}.yaml"))


def facts(run: Run) -> tuple:
    variant = None if run.imported else run.variant
    return run.method, run.pattern, run.sparsity, run.tile, run.quantization, variant


def leaves(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(map(leaves, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float)


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_each_table_has_a_configuration() -> None:
    tables = {name for name, value in NUMBERS.items() if leaves(value)}
    assert tables == {*CONFIGS, THROUGHPUT}
    for table in CONFIGS:
        assert len(numbers(table)) == leaves(NUMBERS[table]), f"numbers of {table} without a run here"


@pytest.mark.parametrize("table", CONFIGS)
def test_each_number_has_a_run(table: str, published: Published) -> None:
    plan = plan_of(CONFIGS[table])
    ids = {name: model.published for name, model in plan.experiment.models.items()}
    present = {(ids[run.model], *facts(run)) for run in plan.grid.runs}
    metrics = {"accuracy", "perplexity", *plan.experiment.evaluation.tasks}
    for number in numbers(table):
        assert number.metric in metrics
        assert (number.model, *number[3:]) in present, f"no run of {number}"
        found = published_value(
            published, number.model, *number[3:6], number.metric, number.tile, number.quantization, number.variant
        )
        assert found == number.value, number


def test_each_speed_is_measured(published: Published) -> None:
    plan = plan_of("paper")
    (model,) = (name for name, model in plan.experiment.models.items() if model.published == PAPER_MODEL)
    sizes, runs = plan.experiment.speedup, {run.sparsity: run for run in plan.timed_runs(model)}
    assert (sizes.batch_size, sizes.prompt) == (16, 128)
    for device, lengths in NUMBERS[THROUGHPUT].items():
        assert {f"gen{new}" for new in sizes.new_tokens} == set(lengths)
        for length, values in lengths.items():
            for level, value in values.items():
                sparsity = int(level) / 100
                assert not sparsity or runs[sparsity].pattern == "hybrid"
                speedup = published_speedup(published, PAPER_MODEL, device, sparsity, int(length.removeprefix("gen")))
                assert speedup == value / values["0"]


def test_each_row_of_patch_has_a_published_mask() -> None:
    plan = plan_of("ablations/published-masks")
    ids = {name: model.published for name, model in plan.experiment.models.items()}
    present = {(ids[run.model], *facts(run)) for run in plan.grid.runs if run.imported}
    rows = {(number.model, *number[3:]) for number in per_task() if number.pattern == "hybrid"}
    assert rows <= present and len(rows) == 3 * len(ids)


@pytest.mark.parametrize(
    ("name", "values"), [("verify", [12.08, 14.57, 13.84, 13.47]), ("verify-maskllm", [9.06, 12.93])]
)
def test_each_run_of_a_verification_has_a_published_perplexity(
    name: str, values: list[float], published: Published
) -> None:
    plan = plan_of(name)
    ids = {model: entry.published for model, entry in plan.experiment.models.items()}
    found = [
        published_value(
            published, ids[run.model], run.method, run.pattern, run.sparsity, "perplexity", run.tile, None, run.variant
        )
        for run in plan.grid.runs
    ]
    assert found == values and all(run.imported for run in plan.grid.runs[1:])
    assert not plan.timed_models and plan.tables() == ["joint", *(["density"] if name == "verify" else [])]
