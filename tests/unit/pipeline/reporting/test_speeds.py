"""Tests of the speed table and the speedup figure."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from patch.errors import InputError
from patch.pipeline.reporting.comparison import compare_with_paper
from patch.pipeline.reporting.figure_style import save
from patch.pipeline.reporting.render import NARROW, to_markdown, to_text, write_table
from patch.pipeline.reporting.speedup import speedup
from patch.pipeline.reporting.summary import cost_line
from patch.pipeline.reporting.table import Table
from patch.pipeline.reporting.tables import build_table
from patch.pipeline.results.speed import SpeedRecord, Speeds
from patch.pipeline.runs.run import ModelInfo

PAPERS = ModelInfo(name="big", title="Llama-2-7B", variant="tile", published="meta-llama/Llama-2-7b-hf", tile=128)


@pytest.fixture
def speeds(one_seed: Any, speed_record: Callable) -> Callable[..., Speeds]:
    """Return a function that makes the speed records of the named models."""

    def make(*names: str, **changes: Any) -> Speeds:
        variants = {model.name: model.variant for model in [*one_seed.models, PAPERS]}
        raw = [speed_record(name, variants[name], 128 if name == "big" else 16, **changes) for name in names]
        return Speeds([SpeedRecord.model_validate(each) for each in raw], one_seed.published)

    return make


def build(one_seed: Any, speeds: Speeds, *more: ModelInfo) -> Table:
    return build_table("speedup", one_seed.frame, [*one_seed.models, *more], one_seed.expected, speeds=speeds)


def runs(table: Table) -> list[list[str]]:
    """Return the rows of the Markdown table, without the rule below the header."""
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    return [[run.strip() for run in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_measured_stands_beside_published(one_seed: Any, speeds: Callable) -> None:
    head, *rows = runs(build(one_seed, speeds("big"), PAPERS))
    assert head[0] == "Model" and head[5:] == [
        "Tokens/s ↑",
        "Speedup ↑",
        "Paper, A6000",
        "Paper, A100",
        "Linears (% of dense) ↓",
    ]
    assert [row[1:4] + row[5:] for row in rows] == [
        ["0", "Dense", "dense", "1000 ± 30", "1.00", "1.00", "1.00", "100.00"],
        ["50", "any", "2:4", "1500 ± 30", "1.50 ± 0.02", "–", "–", "56.25"],
        ["45", "PATCH (tile)", "hybrid 128×128", "1400 ± 30", "1.40 ± 0.02", "1.38", "1.16", "60.62"],
        ["25", "PATCH (tile)", "hybrid 128×128", "1200 ± 30", "1.20 ± 0.02", "1.18", "1.07", "78.12"],
    ]


def test_other_models_have_dashes(one_seed: Any, speeds: Callable) -> None:
    table = build(one_seed, speeds("gemma", "big"), PAPERS)
    _, *rows = runs(table)
    assert [row[0] for row in rows] == ["Gemma-3-1B"] * 4 + ["Llama-2-7B"] * 4, "in the configuration's order"
    assert {run for row in rows[:4] for run in row[7:9]} == {"–"}
    alone = build(one_seed, speeds("gemma"))
    assert not any("aper" in note for note in alone.notes)


def test_rows_of_another_model_have_no_numbers_of_the_paper(one_seed: Any, speeds: Callable) -> None:
    table = build(one_seed, speeds("llama"))
    assert not any("Paper" in title for title in runs(table)[0]) and not any("aper" in note for note in table.notes)
    comparable = build(one_seed, speeds("big", "llama"), PAPERS)
    assert [row[7] for row in runs(comparable)[1:]] == ["–"] * 4 + ["1.00", "–", "1.38", "1.18"]
    assert any(note.startswith("Paper: speedups of LLaMA-2 7B") for note in comparable.notes)


def test_noisy_speeds_are_marked_and_show_their_quartiles(one_seed: Any, speeds: Callable, tmp_path: Any) -> None:
    raw = speeds("qwen").records[0].model_dump(by_alias=True)
    quiet = build(one_seed, speeds("qwen"))
    raw["timed"][1] |= {
        "tokens_per_second": {"median": 408.6, "low": 51.2, "high": 3010.0},
        "rounds": 3,
        "noisy": ["tokens_per_second", "prefill_seconds"],
    }
    raw["timed"][2] |= {"rounds": 3, "noisy": ["prefill_seconds"]}
    table = build(one_seed, Speeds([SpeedRecord.model_validate(raw)], one_seed.published))
    assert [row[5:7] for row in runs(table)[1:4]] == [
        ["1000 ± 30", "1.00"],
        [r"408.6 \[51.2, 3010.0\] †", "1.50 ± 0.02"],
        ["1400 ± 30", "1.40 ± 0.02"],
    ]
    notes = [[note for note in each.notes if note.startswith("†")] for each in (quiet, table)]
    assert notes[0] == [] and "noisy in each of 3 rounds of measurement" in notes[1][0]
    paths = write_table(table, tmp_path / "speedup")
    with paths[0].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["tokens_per_second_noisy"] for row in rows] == ["false", "true", "false", "false"]
    assert {row["speedup_noisy"] for row in rows} == {"false"}
    assert r"408.6 [51.2, 3010.0] $\dagger$" in paths[2].read_text(encoding="utf-8")
    assert "408.6 [51.2, 3010.0] †" in paths[3].read_text(encoding="utf-8")
    assert NARROW not in to_text(table, width=60), "the table has no column of the paper"


def test_the_caption_names_the_machine_and_the_sizes(one_seed: Any, speeds: Callable) -> None:
    table = build(one_seed, speeds("qwen"))
    assert table.caption == (
        "Speed of greedy generation on A CPU @ 2 GHz, 2 threads (float32): batch 16, prompt 128, 128 new tokens."
    )
    other = speeds("gemma", hardware="A GPU", device="cuda", dtype="bfloat16").records
    both = build(one_seed, Speeds([*speeds("qwen").records, *other], one_seed.published))
    assert "2 threads (float32) and A GPU (bfloat16)" in both.caption


def test_models_of_demo_size_are_called_that(one_seed: Any, speeds: Callable) -> None:
    assert any("Qwen2-mini: demo size" in note for note in build(one_seed, speeds("qwen")).notes)
    large = speeds("qwen").records[0].model_dump(by_alias=True)
    for timed in large["timed"]:
        timed["linear_bytes"] = {name: 1000 * size for name, size in timed["linear_bytes"].items()}
    big = Speeds([SpeedRecord.model_validate(large)], one_seed.published)
    assert not any("demo size" in note for note in build(one_seed, big).notes)


def test_the_part_of_the_paper_with_as_many_new_tokens(one_seed: Any, speeds: Callable) -> None:
    table = build(one_seed, speeds("big", new_tokens=(1024,)), PAPERS)
    assert runs(table)[3][7] == "1.25" and any("1024 new tokens. –" in note for note in table.notes)


def test_several_numbers_of_new_tokens_have_rows_of_their_own(one_seed: Any, speeds: Callable, tmp_path: Any) -> None:
    table = build(one_seed, speeds("big", new_tokens=(128, 1024)), PAPERS)
    head, *rows = runs(table)
    assert head[4] == "Setting"
    assert [(row[1], row[4], *row[8:10]) for row in rows] == [
        ("0", "128 new tokens", "1.00", "1.00"),
        ("0", "1024 new tokens", "1.00", "1.00"),
        ("50", "128 new tokens", "–", "–"),
        ("50", "1024 new tokens", "–", "–"),
        ("45", "128 new tokens", "1.38", "1.16"),
        ("45", "1024 new tokens", "1.25", "1.12"),
        ("25", "128 new tokens", "1.18", "1.07"),
        ("25", "1024 new tokens", "1.13", "1.06"),
    ]
    assert "batch 16, prompt 128, 128 and 1024 new tokens" in table.caption
    assert any("128 or 1024 new tokens. –" in note for note in table.notes)
    with write_table(table, tmp_path / "speedup")[0].open(encoding="utf-8") as file:
        assert [row["setting"] for row in csv.DictReader(file)][:2] == ["128 new tokens", "1024 new tokens"]


def test_what_is_not_measured_is_said(one_seed: Any, speeds: Callable) -> None:
    assert build(one_seed, speeds("qwen")).notes[-1] == "Not measured: Gemma-3-1B, Llama-mini."
    nothing = build(one_seed, speeds())
    assert nothing.rows == () and nothing.notes == ("The speed of no model has been measured yet.",)
    assert to_text(nothing)
    with pytest.raises(InputError, match="unknown table"):
        build_table("speedup", one_seed.frame, one_seed.models, one_seed.expected)


def test_files_of_the_table(one_seed: Any, speeds: Callable, tmp_path: Any) -> None:
    paths = write_table(build(one_seed, speeds("big", "qwen"), PAPERS), tmp_path / "speedup")
    assert [path.suffix for path in paths] == [".csv", ".md", ".tex", ".html"]
    with paths[0].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "model",
        "sparsity_percent",
        "method",
        "pattern",
        "achieved_percent",
        "tokens_per_second",
        "tokens_per_second_spread",
        "tokens_per_second_noisy",
        "speedup",
        "speedup_spread",
        "speedup_noisy",
        "paper_a6000_speedup",
        "paper_a100_speedup",
        "linears_percent_of_dense",
    ]
    assert {row["paper_a100_speedup"] for row in rows[:4]} == {""} and rows[6]["paper_a100_speedup"] == "1.16237"
    assert (rows[1]["speedup"], rows[1]["speedup_spread"]) == ("1.5", "0.02")
    assert "A CPU @ 2 GHz" in paths[3].read_text(encoding="utf-8")


def test_speed_is_not_compared_as_accuracy_is(one_seed: Any, speeds: Callable) -> None:
    assert list(compare_with_paper(build(one_seed, speeds("big"), PAPERS), [PAPERS])) == []


def test_what_measuring_took_is_counted(one_seed: Any, speeds: Callable) -> None:
    line = cost_line(one_seed.records, speeds("qwen", "llama").records)
    assert "speedup 24 s in 2 jobs" in line and "speedup" not in cost_line(one_seed.records)
    assert "900 MB" in line


def points(axis: Any) -> list[tuple[str, float]]:
    """Return the label and the place of each point of a panel, from top to bottom."""
    names = [label.get_text() for label in axis.figure.axes[0].get_yticklabels()]
    lines = sorted((container.lines[0] for container in axis.containers), key=lambda line: line.get_ydata()[0])
    return [(names[round(line.get_ydata()[0])], float(line.get_xdata()[0])) for line in lines]


def hollow(axis: Any) -> list[bool]:
    lines = sorted((container.lines[0] for container in axis.containers), key=lambda line: line.get_ydata()[0])
    return [line.get_markerfacecolor() == "white" for line in lines]


def bars(axis: Any) -> list[list[float]]:
    """Return the ends of the horizontal bars."""
    return [
        segment[:, 0].tolist() for each in axis.containers for bar in each.lines[2] for segment in bar.get_segments()
    ]


ROWS = ["Dense", "PATCH (joint), 25 %", "PATCH (joint), 45 %", "Magnitude, 2:4", "Wanda, 2:4", "SparseGPT, 2:4"]
ROWS += ["MaskLLM, 2:4"]


def test_each_method_has_a_row_and_2_4_methods_share_a_speed(one_seed: Any, speeds: Callable) -> None:
    model, (record,) = one_seed.models[0], speeds("qwen").records
    frame = one_seed.frame[one_seed.frame["quantization"].isna()]
    speed, *quality = speedup(frame, record, model).axes
    # PATCH has measured speeds at 25 and 45 %, not at 35 %; unstructured rows have none.
    assert points(speed) == list(zip(ROWS, [1.0, 1.2, 1.4, 1.5, 1.5, 1.5, 1.5], strict=True))
    assert hollow(speed) == [False] * 7
    np.testing.assert_allclose(bars(speed), [[1.0, 1.0], [1.18, 1.22], [1.38, 1.42]])
    (band,) = speed.collections[-1].get_paths()
    np.testing.assert_allclose(band.get_extents().extents, [1.48, 2.5, 1.52, 6.5])
    for axis, metric in zip(quality, ("accuracy", "perplexity"), strict=True):
        wanted = frame[(frame["model"] == "qwen") & (frame["metric"] == metric)]
        values = {
            (row.method, row.sparsity): row.value for row in wanted[wanted["pattern"] != "unstructured"].itertuples()
        }
        keys = [("dense", 0.0), ("patch-joint", 0.25), ("patch-joint", 0.45)]
        keys += [(method, 0.5) for method in ("magnitude", "wanda", "sparsegpt", "maskllm")]
        assert points(axis) == [(row, pytest.approx(values[key])) for row, key in zip(ROWS, keys, strict=True)]


def test_noisy_speeds_are_hollow(one_seed: Any, speeds: Callable) -> None:
    raw = speeds("qwen").records[0].model_dump(by_alias=True)
    raw["timed"][1] |= {"rounds": 3, "noisy": ["speedup"]}
    raw["timed"][2] |= {"rounds": 3, "noisy": ["tokens_per_second"]}
    figure = speedup(one_seed.frame, SpeedRecord.model_validate(raw), one_seed.models[0])
    speed, *quality = figure.axes
    assert hollow(speed) == [False] * 3 + [True] * 4, "the speedup is paired, so that drift does not make it noisy"
    assert not any(hollow(quality[0]) + hollow(quality[1]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Hollow: noisy speed"]


def test_each_number_of_new_tokens_has_a_panel(one_seed: Any, speeds: Callable) -> None:
    raw = speeds("qwen", new_tokens=(128, 1024)).records[0].model_dump(by_alias=True)
    for timed in raw["timed"][5:]:
        timed["speedup"] = {name: 2 * value for name, value in timed["speedup"].items()}
    figure = speedup(one_seed.frame, SpeedRecord.model_validate(raw), one_seed.models[0])
    short, long, *quality = figure.axes
    assert [x for _, x in points(short)][:4] == [1.0, 1.2, 1.4, 1.5]
    assert [x for _, x in points(long)][:4] == [1.0, 2.4, 2.8, 3.0]
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels[:2] == ["Speedup, 128 new tokens", "Speedup, 1024 new tokens"] and len(quality) == 2
    assert figure.get_suptitle() == "Qwen2-mini on A CPU @ 2 GHz: batch 16, prompt 128"


def test_a_perplexity_beyond_the_axis_is_drawn_on_its_edge(one_seed: Any, speeds: Callable) -> None:
    frame, (record,) = one_seed.frame, speeds("qwen").records
    broken = (frame["method"] == "magnitude") & (frame["metric"] == "perplexity")
    figure = speedup(frame.assign(value=frame["value"].mask(broken, 1e6)), record, one_seed.models[0])
    axis = figure.axes[2]
    assert dict(points(axis))["Magnitude, 2:4"] == axis.get_xlim()[1] < 1000
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["On the right edge: beyond the axis"]


def test_imported_masks_have_the_speed_of_their_pattern_alone(one_seed: Any, speeds: Callable) -> None:
    """Check that imported 2:4 masks share the 2:4 speed, and that imported hybrid masks have no speed."""
    model, (record,) = one_seed.models[0], speeds("qwen").records
    frame = one_seed.frame
    of_model = frame[(frame["model"] == "qwen") & frame["method"].isin(["maskllm", "patch-joint"])]
    more = pd.concat([frame, of_model.assign(variant="import=theirs"), of_model.assign(variant="target=layer")])
    assert points(speedup(more, record, model).axes[0])[-1] == ("MaskLLM (imported), 2:4", 1.5)
    assert len(points(speedup(more, record, model).axes[0])) == len(ROWS) + 1


def test_variants_and_seeds(experiment: Any, speeds: Callable, tmp_path: Any) -> None:
    """Check that means over seeds are drawn, without ablations and quantized runs."""
    model, (record,) = experiment.models[2], speeds("llama").records
    figure = speedup(experiment.frame, record, model)
    assert len(points(figure.axes[1])) == 7
    assert all(path.stat().st_size for path in save(figure, tmp_path / "speedup"))


def test_a_figure_of_a_record_alone_can_be_drawn(one_seed: Any, speeds: Callable, tmp_path: Any) -> None:
    model, (record,) = one_seed.models[0], speeds("qwen").records
    frame = copy.deepcopy(one_seed.frame)
    assert save(speedup(frame[:0], record, model), tmp_path / "empty")
    assert save(speedup(frame[frame["method"] == "dense"], record, model), tmp_path / "dense")
    perplexity = speedup(frame[frame["metric"] == "perplexity"], record, model)
    assert [axis.get_xlabel() for axis in perplexity.axes] == ["Speedup, 128 new tokens", "Perplexity (log scale)"]
