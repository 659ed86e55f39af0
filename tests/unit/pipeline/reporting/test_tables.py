import csv
import dataclasses
import math

import pytest

from patch.errors import InputError
from patch.pipeline.reporting.escape import escape_tex
from patch.pipeline.reporting.render import to_text, write_table
from patch.pipeline.reporting.selection import TABLES
from patch.pipeline.reporting.tables import build_table


def build(name, experiment):
    return build_table(name, experiment.frame, experiment.models, experiment.expected)


def labels(table):
    return [(round(100 * row.sparsity), row.method, row.pattern.split(" ")[0]) for row in table.rows]


def test_rows_stand_in_the_papers_order(experiment):
    table = build("tile", experiment)
    assert labels(table) == [
        (0, "Dense", "dense"),
        (50, "Magnitude", "2:4"),
        (50, "Wanda", "2:4"),
        (50, "SparseGPT", "2:4"),
        (50, "MaskLLM", "2:4"),
        (45, "PATCH", "hybrid"),
        (35, "PATCH", "hybrid"),
        (25, "PATCH", "hybrid"),
    ]
    assert [heading.text for heading in table.header] == ["Acc. (%) ↑", "PPL ↓"]


def test_tables_show_the_models_of_their_variant(experiment):
    assert {h.model.name for h in build("joint", experiment).header} == {"qwen", "gemma"}
    assert {h.model.name for h in build("tile", experiment).header} == {"llama"}


def test_unstructured_stands_beside_patch_at_equal_sparsity(experiment):
    experiment.models = [model for model in experiment.models if model.name != "gemma"]
    experiment.records = [record for record in experiment.records if record.run.model != "gemma"]
    table = build("unstructured", experiment)
    assert labels(table) == [
        row
        for level in (45, 35, 25)
        for row in (
            (level, "Wanda", "unstructured"),
            (level, "SparseGPT", "unstructured"),
            (level, "PATCH", "hybrid"),
        )
    ]
    assert all(measure is not None for row in table.rows for measure in row.measures)


def test_numbers_come_from_the_frame(experiment):
    frame = experiment.frame
    row = build("tile", experiment).rows[2]
    chosen = frame[(frame["model"] == "llama") & (frame["method"] == "wanda") & (frame["pattern"] == "2:4")]
    expected = chosen[chosen["metric"] == "perplexity"]
    assert row.measures[1].value == pytest.approx(expected["value"].mean())
    assert row.measures[1].published == 11.15
    assert row.measures[1].seeds == len(expected)


def test_a_missing_run_is_a_dash_and_counted(experiment, tmp_path):
    masked = [r for r in experiment.records if r.run.model == "llama" and r.run.method == "maskllm"]
    gone = [record for record in masked if not record.run.quantization]
    experiment.records = [record for record in experiment.records if record not in gone]
    table = build("tile", experiment)
    row = next(row for row in table.rows if row.method == "MaskLLM")
    assert row.measures == (None, None)
    plural = "s" if len(gone) > 1 else ""
    assert table.notes[-1].startswith(f"{len(gone)} run{plural} missing: llama/maskllm_2of4_0.5_s0")
    _, markdown, *_ = write_table(table, tmp_path / "t")
    line = next(line for line in markdown.read_text().splitlines() if "MaskLLM" in line)
    assert line.count("–") == len(line.split("|")) - 5


def test_a_missing_seed_is_counted_too(experiment):
    gone = next(r for r in experiment.records if r.run.model == "llama" and r.run.method == "wanda")
    experiment.records.remove(gone)
    assert f"llama/{gone.run.id}" in build("tile", experiment).notes[-1]


def test_long_lists_of_missing_runs_are_cut(experiment):
    experiment.records = [record for record in experiment.records if record.run.method == "dense"]
    table = build("tile", experiment)
    assert len(table.rows) == 8
    llama = [run for run in experiment.expected if run.model == "llama" and run.pattern != "unstructured"]
    assert f"and {len([run for run in llama if not run.quantization]) - 7} more" in table.notes[-1]


def test_a_method_of_others_comes_last_of_its_sparsity(experiment):
    first = next(r for r in experiment.records if r.run.model == "llama" and r.run.method == "wanda")
    run = first.run.model_copy(update={"method": "my_method"})
    experiment.records.append(first.model_copy(update={"run": run}))
    methods = [row.method for row in build("tile", experiment).rows]
    assert methods.index("my_method") == methods.index("MaskLLM") + 1


def test_tasks_has_a_row_for_each_model_and_run(experiment):
    table = build("tasks", experiment)
    runs = {(c.model, c.method, c.pattern, c.sparsity, c.quantization) for c in experiment.expected}
    assert len(table.rows) == len(runs)
    assert table.header[-1].text == "Mean ↑"


def test_an_unknown_table_is_refused(experiment):
    with pytest.raises(InputError, match="unknown table `ablation`; known: joint"):
        build("ablation", experiment)


def test_a_table_without_runs_has_a_message(experiment, tmp_path):
    experiment.models = [model for model in experiment.models if model.variant == "joint"]
    experiment.records = [record for record in experiment.records if record.run.model != "llama"]
    table = build("tile", experiment)
    assert table.rows == ()
    assert "No run" in to_text(table)
    assert len(write_table(table, tmp_path / "t")) == 4


@pytest.mark.parametrize("name", TABLES)
def test_csv_is_rectangular_and_numeric(experiment, tmp_path, name):
    table = build(name, experiment)
    path, *_ = write_table(table, tmp_path / name)
    header, *rows = csv.reader(path.open())
    assert len(set(header)) == len(header)
    assert len(rows) == len(table.rows)
    assert all(len(row) == len(header) for row in rows)
    assert rows or name == "seeds"
    start = header.index(f"{table.header[0].key}")
    for row in rows:
        assert all(run in ("", "true", "false") or float(run) is not None for run in row[start:])


@pytest.mark.parametrize("name", TABLES)
def test_tex_and_markdown_are_rectangular(experiment, tmp_path, name):
    table = build(name, experiment)
    _, markdown, tex, _ = write_table(table, tmp_path / name)
    bars = {line.count("|") for line in markdown.read_text().splitlines() if line.startswith("|")}
    assert len(bars) == 1
    text = tex.read_text()
    body = [line for line in text.split(r"\bottomrule")[0].splitlines() if line.endswith(r"\\")]
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    assert {line.count(" & ") + 1 for line in body if "multicolumn" not in line} == {len(columns)}
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert text.isascii()


def test_bold_is_written(experiment, tmp_path):
    table = build("tile", experiment)
    row = dataclasses.replace(
        table.rows[1], measures=tuple(dataclasses.replace(m, best=True) for m in table.rows[1].measures)
    )
    _, markdown, tex, _ = write_table(dataclasses.replace(table, rows=(row,)), tmp_path / "t")
    assert markdown.read_text().count("**") == 4
    assert tex.read_text().count(r"\textbf{") == 2


def test_terminal_table_stays_within_its_width(experiment):
    text = to_text(build("joint", experiment), width=110)
    assert max(map(len, text.splitlines())) <= 110
    assert "left out" in text


def test_wide_terminals_get_the_papers_numbers(experiment):
    assert "Paper (Δ)" in to_text(build("joint", experiment), width=250)


def test_another_models_numbers_are_not_in_the_table(experiment, tmp_path):
    for path in write_table(build("tile", experiment), tmp_path / "tile"):
        assert "Paper" not in path.read_text() and "published" not in path.read_text()
    header = next(csv.reader(write_table(build("joint", experiment), tmp_path / "joint")[0].open()))
    assert {name for name in header if "published" in name or "difference" in name} == {
        f"gemma_{metric}_{part}"
        for metric in ("accuracy_percent", "perplexity")
        for part in ("published", "difference")
    }


def test_tex_escapes():
    assert escape_tex(r"50% of a_b & #1 {x} ~ ^ $ \y") == (
        r"50\% of a\_b \& \#1 \{x\} \textasciitilde{} \textasciicircum{} \$ \textbackslash{}y"
    )
    assert escape_tex("1 ± 2 × 3 −4 –") == r"1 $\pm$ 2 $\times$ 3 $-$4 --"


def test_fine_tuned_rows_follow_their_methods_and_are_not_compared_with_the_paper(experiment):
    plain = [record for record in experiment.records if record.run.model == "llama" and not record.run.derived]
    chosen = [record for record in plain if record.run.method in ("wanda", "patch-tile")]
    experiment.records += [
        record.model_copy(update={"run": record.run.model_copy(update={"finetune": kind})})
        for kind in ("lora", "full")
        for record in chosen
    ]
    table = build("tile", experiment)
    assert labels(table)[2:8] == [
        (50, "Wanda", "2:4"),
        (50, "Wanda + fine-tuning", "2:4"),
        (50, "Wanda + LoRA", "2:4"),
        (50, "SparseGPT", "2:4"),
        (50, "MaskLLM", "2:4"),
        (45, "PATCH", "hybrid"),
    ]
    assert labels(table)[8:10] == [(45, "PATCH + fine-tuning", "hybrid"), (45, "PATCH + LoRA", "hybrid")]
    assert all(math.isnan(measure.published) == ("+" in row.method) for row in table.rows for measure in row.measures)
    assert not any("+" in row.method for row in build("density", experiment).rows)


def test_quantised_rows_have_a_table_of_their_own_in_the_order_of_the_paper(experiment):
    table = build("quantized", experiment)
    assert [(row.sparsity, row.method, row.pattern) for row in table.rows] == [
        (0.5, "MaskLLM", "2:4, AbsMax"),
        (0.45, "PATCH", "hybrid 16×16, AbsMax"),
        (0.45, "PATCH", "hybrid 16×16, AbsMax + SLiM-LoRA"),
        (0.35, "PATCH", "hybrid 16×16, AbsMax"),
        (0.35, "PATCH", "hybrid 16×16, AbsMax + SLiM-LoRA"),
        (0.25, "PATCH", "hybrid 16×16, AbsMax"),
        (0.25, "PATCH", "hybrid 16×16, AbsMax + SLiM-LoRA"),
    ]
    published = [tuple(measure.published for measure in row.measures) for row in table.rows]
    assert published[:3] == [(47.98, 7.64), (48.19, 7.34), (50.71, 6.83)]
    for other in ("joint", "tile", "unstructured"):
        assert not any("AbsMax" in row.pattern for row in build(other, experiment).rows)
