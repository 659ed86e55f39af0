"""Tables that the grid defines, rows with a varied setting, deviations over seeds, densities and paired errors."""

import csv

import numpy as np
import pandas as pd
import pytest

from patch.pipeline.reporting.layout import Layout
from patch.pipeline.reporting.render import to_text, write_table
from patch.pipeline.reporting.tables import Arrangement, build_table
from patch.pipeline.results.collect import collect
from patch.pipeline.results.differences import COLUMNS, Differences
from patch.pipeline.results.published import load_published
from patch.pipeline.results.record import Record
from patch.pipeline.runs.run import ModelInfo, Run

QWEN = ModelInfo(name="qwen", title="Qwen2.5-0.5B", variant="joint", published="Qwen/Qwen2.5-0.5B", tile=128)
GEMMA = ModelInfo(
    name="gemma", title="Gemma mini", variant="joint", published="google/gemma-3-1b-pt", comparable=False, tile=16
)
VALUES = {"tile_prior=none": 14.9, "tile_prior=sparsegpt": 14.6, "tile_prior=wanda": 14.5, None: 14.6}


def record(run: Run, perplexity: float, accuracy: float = 0.4) -> Record:
    environment = {"git_commit": None, "python": "3", "packages": {}, "device": "cpu", "threads": 1, "time": "t"}
    return Record.model_validate(
        {
            "schema": 1,
            "experiment": "e",
            "run": run,
            "metrics": {
                "perplexity": {"value": perplexity, "stderr": 0.2},
                "accuracy": {"value": accuracy, "stderr": 0.01},
                "cloze": {"value": accuracy, "stderr": 0.01},
            },
            "achieved_sparsity": run.sparsity,
            "density": {"a.0.k_proj": 1.0, "a.1.k_proj": 0.5, "a.0.up_proj": 0.5} if run.tile else {},
            "config_digest": "d",
            "stages": {},
            "environment": environment,
        }
    )


def runs(model: ModelInfo = QWEN, seeds: int = 1) -> list[Run]:
    tile = model.tile
    one = Run(model=model.name, method="patch-joint", pattern="hybrid", sparsity=0.45, tile=tile)
    varied = [one.model_copy(update={"variant": variant, "seed": seed}) for variant in VALUES for seed in range(seeds)]
    return [Run(model=model.name, method="dense", pattern="dense", sparsity=0.0), *varied]


def frame_of(chosen: list[Run], models: list[ModelInfo]) -> pd.DataFrame:
    records = [record(run, VALUES.get(run.variant, 12) + 0.1 * run.seed if run.tile else 12.0) for run in chosen]
    return collect(records, models, load_published("config/published.json"))


def rows_of(chosen: list[Run], *variants: str | None) -> list[str]:
    return [f"{c.model}/{c.row}" for variant in variants for c in chosen if c.tile and c.variant == variant]


@pytest.fixture(autouse=True)
def _root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_a_table_of_the_grids_own_has_its_rows_in_the_order_of_the_grid():
    chosen = runs()
    order = ("tile_prior=wanda", "tile_prior=none", "tile_prior=sparsegpt")
    arrangement = Arrangement(rows_of(chosen, None), {"tile_prior": rows_of(chosen, *order)})
    table = build_table("tile_prior", frame_of(chosen, [QWEN]), [QWEN], chosen, arrangement)
    assert [row.setting for row in table.rows] == ["tile prior: Wanda", "tile prior: none", "tile prior: SparseGPT"]
    assert [row.measures[1].value for row in table.rows] == [14.5, 14.9, 14.6]
    assert [row.measures[1].published for row in table.rows] == [14.5, 14.8, 14.57]
    assert np.isnan([row.measures[0].published for row in table.rows]).all()
    standard = build_table("joint", frame_of(chosen, [QWEN]), [QWEN], chosen, arrangement)
    assert [(row.method, row.setting) for row in standard.rows] == [("PATCH", "")]
    assert standard.rows[0].measures[1].published == 14.57


def test_missing_runs_of_a_table_are_its_own():
    chosen = runs()
    arrangement = Arrangement([], {"tile_prior": rows_of(chosen, "tile_prior=none", "tile_prior=wanda")})
    there = [run for run in chosen if run.variant != "tile_prior=none" and run.variant is not None]
    table = build_table("tile_prior", frame_of(there, [QWEN]), [QWEN], chosen, arrangement)
    assert [row.measures for row in table.rows if "none" in row.setting] == [(None, None)]
    assert table.notes[-1] == "1 run missing: qwen/patch-joint_hybrid_0.45_t128_tile_prior=none_s0."


def test_a_setting_is_a_column_only_where_rows_have_one(tmp_path):
    chosen = runs()
    frame = frame_of(chosen, [QWEN])
    arrangement = Arrangement(rows_of(chosen, None), {"tile_prior": rows_of(chosen, "tile_prior=none")})
    for name, there in (("tile_prior", True), ("joint", False)):
        table = build_table(name, frame, [QWEN], chosen, arrangement)
        assert ("Setting" in [name for _, name in Layout.of(table).texts.columns]) == there
        path, *_ = write_table(table, tmp_path / name)
        header, *lines = csv.reader(path.open())
        assert ("setting" in header) == there and {len(line) for line in lines} == {len(header)}
    with pytest.raises(ValueError, match="unknown table `other`; known: .*seeds, tile_prior"):
        build_table("other", frame, [QWEN], chosen, arrangement)


def test_imported_rows_say_where_they_are_from():
    run = Run(model="qwen", method="maskllm", pattern="2:4", sparsity=0.5, variant="import=theirs")
    (row,) = build_table("joint", frame_of([run], [QWEN]), [QWEN], [run]).rows
    assert (row.method, row.setting, row.measures[1].published) == ("MaskLLM", "imported: theirs", 15.22)


def test_seeds_are_printed_as_deviations():
    chosen = runs(seeds=3)
    frame = frame_of(chosen, [QWEN])
    table = build_table("seeds", frame, [QWEN], chosen)
    assert {row.sparsity for row in table.rows} == {0.45}, "dense has no seeds"
    assert not any(measure.best for row in table.rows for measure in row.measures)
    text = to_text(table)
    assert "14.70 ± 0.10" in text and "sample standard deviation over up to 3 seeds" in text and "Bold" not in text
    assert "14.70 ± 0.10" not in to_text(build_table("joint", frame, [QWEN], chosen))


def test_densities_of_projections():
    chosen = runs()
    table = build_table("density", frame_of(chosen, [QWEN]), [QWEN], chosen, Arrangement(rows_of(chosen, None)))
    assert [heading.text for heading in table.header] == ["k", "up"]
    (row,) = table.rows
    assert [(m.value, m.best) for m in row.measures] == [(75.0, False), (50.0, False)]
    assert row.model == "Qwen2.5-0.5B"


def test_models_share_the_rows_of_a_table_of_the_grids_own():
    both = [*runs(QWEN), *runs(GEMMA)]
    own = {"tile_prior": rows_of(both, "tile_prior=none", "tile_prior=wanda")}
    table = build_table("tile_prior", frame_of(both, [QWEN, GEMMA]), [QWEN, GEMMA], both, Arrangement([], own))
    # Tiles of 128 and 16 are separate rows.
    assert [len([m for m in row.measures if m]) for row in table.rows] == [2, 2, 2, 2]
    assert [row.setting for row in table.rows] == ["tile prior: none", "tile prior: none"] + ["tile prior: Wanda"] * 2


@pytest.mark.parametrize(("paired", "bold"), [(0.05, [True, False, False]), (0.2, [True, False, True])])
def test_paired_errors_decide_what_is_bold(paired, bold):
    chosen = runs()
    order = ("tile_prior=wanda", "tile_prior=none", "tile_prior=sparsegpt")
    names = {run.variant: run.row for run in chosen}
    lines = [
        ("qwen", "perplexity", 0.45, names["tile_prior=wanda"], names[other], -0.1, paired, 50, 1, "abcd")
        for other in order[1:]
    ]
    differences = Differences(pd.DataFrame(lines, columns=COLUMNS))
    arrangement = Arrangement([], {"tile_prior": rows_of(chosen, *order)})
    table = build_table("tile_prior", frame_of(chosen, [QWEN]), [QWEN], chosen, arrangement, differences)
    assert [row.measures[1].best for row in table.rows] == bold


def test_another_models_number_is_not_printed():
    both = [*runs(QWEN), *runs(GEMMA)]
    table = build_table("tasks", frame_of(both, [QWEN, GEMMA]), [QWEN, GEMMA], both)
    paper = Layout.of(table).texts["", "Paper (Δ)"]
    assert {row.model for row, text in zip(table.rows, paper, strict=True) if text != "–"} == {"Qwen2.5-0.5B"}
    alone = build_table("tasks", frame_of(runs(GEMMA), [GEMMA]), [GEMMA], runs(GEMMA))
    assert not any("Paper" in name for _, name in Layout.of(alone).texts.columns)
