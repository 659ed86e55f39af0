import dataclasses
import re
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest

from patch.evaluation.metric import HeldOutLoss
from patch.pipeline.reporting.captions import caption
from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.reporting.findings import READING
from patch.pipeline.reporting.missing_results import missing_results
from patch.pipeline.reporting.published_table import published_table
from patch.pipeline.reporting.render import to_markdown
from patch.pipeline.reporting.summary import Results, cost_line, environment_line, summary
from patch.pipeline.reporting.tables import build_table
from patch.pipeline.reporting.uncertainty import close_pairs
from patch.pipeline.results.differences import COLUMNS, Differences
from patch.pipeline.results.record import measured_costs
from patch.pipeline.results.speed import SpeedRecord
from patch.pipeline.runs.run import ModelInfo, Run


def differences(experiment):
    """Return random differences of all pairs of rows of one sparsity, and of PATCH or dense and each other row."""
    rng, lines = np.random.default_rng(0), []
    for model in experiment.models:
        rows = list({run.row: run for run in experiment.expected if run.model == model.name}.values())
        for index, b in enumerate(rows):
            for a in rows[index + 1 :]:
                if a.sparsity == b.sparsity or {a.pattern, b.pattern} & {"dense", "hybrid"}:
                    for metric in ("perplexity", "accuracy", "a_task"):
                        error = np.nan if rng.random() < 0.1 else 1.0
                        larger = max(a.sparsity, b.sparsity)
                        lines.append(
                            (model.name, metric, larger, a.row, b.row, rng.normal(0, 2), error, 100, 1, "abcd")
                        )
    return Differences(pd.DataFrame(lines, columns=COLUMNS))


def results(experiment, **changes):
    arguments = {
        "experiment": "demo",
        "run": {"Models": "Qwen2_mini", "Seeds": "0"},
        "tables": [
            build_table(name, experiment.frame, experiment.models, experiment.expected) for name in ("joint", "tile")
        ],
        "records": experiment.records,
        "differences": differences(experiment),
        "models": experiment.models,
        "expected": experiment.expected,
        "published": experiment.published,
        "command": "snakemake --configfile my.yaml",
        "figures": {"Qwen2-mini": {"pareto": "figures/qwen/pareto.png"}},
    }
    return Results(**arguments | changes)


def held_out(record, final):
    """Return a record of a learned run whose initial mask has a held-out loss of 4."""
    losses = {"initial": 4.0, "final": final, "best": 3.5, "best_step": 7, "kept": "last", "sequences": 3}
    return record.model_copy(update={"held_out": HeldOutLoss(**losses)})


def test_a_learned_mask_that_is_worse_than_its_initial_mask_is_a_warning(experiment):
    finals = {"maskllm": 4.5, "patch-tile": 3.5}
    records = [held_out(r, finals[r.run.method]) if r.run.method in finals else r for r in experiment.records]
    changed = dataclasses.replace(experiment, records=records)
    (table,) = results(changed, tables=[build_table("tile", changed.frame, changed.models, changed.expected)]).tables
    (note,) = (note for note in table.notes if note.startswith("Held-out loss"))
    assert "Llama-mini: MaskLLM 50 % 4.500 (4.000, worse), PATCH 45 % 3.500 (4.000), PATCH 35 % 3.500" in note
    lines = [line for line in section(summary(results(changed)), "Findings").splitlines() if "worse than" in line]
    learned = [record for record in records if record.run.method == "maskllm" and not record.run.derived]
    assert len(lines) >= len(learned) and "worse than its" not in summary(results(experiment))
    expected = "Llama-mini, MaskLLM 50 %, seed 0: the learned mask is worse than its initial mask (held-out loss 4.500"
    assert any(line.startswith(f"- {expected}") for line in lines)


def section(text, name):
    return text.split(f"\n## {name}\n\n")[1].split("\n\n## ")[0]


def test_the_page_has_every_section_and_the_tables_as_they_are_written(experiment):
    found = results(experiment)
    text = summary(found)
    assert text.startswith("# Results of `demo`\n")
    names = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert names == [
        "Findings",
        "Main results",
        "Comparison with the paper",
        "Uncertainty",
        "Configuration",
        "Missing results",
        "Cost",
        "Environment",
        "Reproduction",
    ]
    main = [f"### {table.name}\n\n{to_markdown(table)}".rstrip("\n") for table in found.tables]
    figure = f"![Qwen2-mini: pareto](figures/qwen/pareto.png)\n\n{caption('pareto')}"
    assert section(text, "Main results") == "\n\n".join([figure, *main])
    assert section(text, "Configuration") == "- Models: Qwen2\\_mini\n- Seeds: 0"
    assert "snakemake --configfile my.yaml" in section(text, "Reproduction")


def test_findings_are_listed_first_and_only_if_there_are_any(one_seed):
    found = results(one_seed)
    bullets, note = section(summary(found), "Findings").split("\n\n")
    assert bullets.splitlines() == [f"- {escape_markdown(text)}" for text in found.findings] and note == READING
    assert "PATCH at 45 %" in bullets and "Qwen2-mini" in bullets
    nothing = results(one_seed, differences=Differences(pd.DataFrame([], columns=COLUMNS)))
    assert nothing.findings == [] and "## Findings" not in summary(nothing)


def test_the_first_sentence_counts_the_runs_and_names_the_machines(one_seed, speed_record):
    environment = one_seed.records[0].environment
    new = environment.model_copy(update={"device": "H100", "processor": "EPYC <9>"})
    records = [record.model_copy(update={"environment": new}) for record in one_seed.records[1:]]
    speeds = [SpeedRecord.model_validate(speed_record("qwen", hardware="EPYC <9>"))]
    total = len(one_seed.expected)
    (line,) = [
        line for line in summary(results(one_seed, records=records, speeds=speeds)).splitlines() if "runs of" in line
    ]
    assert line == f"{total - 1} of {total} runs of 3 models with 1 seed, measured on H100 and EPYC \\<9\\>."
    (old,) = [line for line in summary(results(one_seed)).splitlines() if "runs of" in line]
    assert old.startswith(f"{total} of {total} runs of 3 models") and old.endswith("measured on cpu.")


def test_long_tables_are_links_and_other_parts_follow_the_main_results(one_seed):
    names = ("joint", "tile", "unstructured", "tasks", "density")
    tables = [build_table(name, one_seed.frame, one_seed.models, one_seed.expected) for name in names]
    tables.append(published_table(one_seed.frame, one_seed.models, one_seed.published))
    figures = {"Llama-mini": {"pareto": "l.png"}, "Qwen2-mini": {"pareto": "q.png", "density": "d.png"}}
    text = summary(results(one_seed, tables=tables, figures=figures, table_folder="."))
    pareto, density = caption("pareto"), caption("density")
    assert section(text, "Main results").startswith(f"![Qwen2-mini: pareto](q.png)\n\n{pareto}\n\n### joint\n")
    more = section(text, "More tables")
    assert more.startswith("### unstructured\n") and "### density\n" in more and "### published" not in more
    assert f"### tasks\n\nAccuracy (%) of each task. {len(tables[3].rows)} rows: [tasks.md](./tasks.md)." in more
    assert section(text, "More figures") == (
        f"### Llama-mini\n\n![Llama-mini: pareto](l.png)\n\n{pareto}\n\n"
        f"### Qwen2-mini\n\n![Qwen2-mini: density](d.png)\n\n{density}"
    )
    assert to_markdown(tables[-1]).rstrip("\n") in section(text, "Comparison with the paper")


def test_each_comparable_model_is_counted_and_each_other_is_ordered(one_seed):
    lines = section(summary(results(one_seed)), "Comparison with the paper").splitlines()
    joint = next(line for line in lines if line.startswith("- Gemma"))
    row_count = sum(
        not np.isnan(measure.published)
        for row in results(one_seed).tables[0].rows
        for heading, measure in zip(results(one_seed).tables[0].header, row.measures, strict=True)
        if heading.model.name == "gemma" and measure
    )
    assert f" of {row_count} numbers are within two standard errors" in joint
    for title, name in (("Qwen2-mini", "joint"), ("Llama-mini", "tile")):
        assert any(line.startswith(f"- {title} and ") and f"`{name}`" in line and "tau" in line for line in lines)


def test_close_pairs_are_counted_by_sparsity(one_seed):
    frame = differences(one_seed).frame
    sparsities = {(run.model, run.row): run.sparsity for run in one_seed.expected}
    counts = defaultdict(lambda: [0, 0])
    for line in frame.to_dict("records"):
        known = not np.isnan(line["stderr"]) and line["metric"] != "a_task"
        if known and sparsities[line["model"], line["a"]] == sparsities[line["model"], line["b"]]:
            of = counts[line["model"], line["sparsity"], line["metric"]]
            of[1] += 1
            of[0] += abs(line["difference"]) <= 2 * line["stderr"]
    found = close_pairs(frame, one_seed.expected)
    flat = {
        (*key, metric): [len(close), count]
        for key, of in found.items()
        for metric, (close, count) in of.items()
        if count
    }
    assert flat == dict(counts)
    assert [key[1] for key in found] == sorted((key[1] for key in found), reverse=True)
    text = section(summary(results(one_seed)), "Uncertainty")
    close, count = found["qwen", 0.5]["perplexity"]
    assert re.search(rf"\| Qwen2-mini +\| 50 +\| {len(close)} of {count} pairs", text)
    assert "on 400 sequences" in text and "cloze\\_words 200" in text and "There is one seed" in text


def test_seeds_are_in_the_errors(experiment):
    seeds = {record.run.seed for record in experiment.records}
    text = section(summary(results(experiment)), "Uncertainty")
    assert ("mean over up to 3 seeds" in text) == (len(seeds) == 3)


def test_a_missing_run_is_named(one_seed):
    gone = one_seed.records[3]
    kept = [record for record in one_seed.records if record is not gone]
    whole, partial = (
        section(summary(results(one_seed, records=r)), "Missing results") for r in (one_seed.records, kept)
    )
    assert whole.startswith(f"All {len(one_seed.expected)} runs have a record.")
    name = f"{gone.run.model}/{gone.run.id}".replace("_", "\\_")
    assert "no record" not in whole
    assert partial.startswith(f"- {name}: no record. ") and "python -m patch status" in partial


def test_rows_of_the_paper_that_are_not_in_the_grid(one_seed):
    llama = next(model for model in one_seed.models if model.name == "llama")
    (line, others, speed) = missing_results(one_seed.published, one_seed.expected, [llama])
    assert line == (
        "Published rows of meta-llama/Llama-2-7b-hf that Llama-mini lacks: Thanos 2:4 at 50 %; ProxSparse 2:4 at 50 %."
    )
    assert "Llama-2-13B" in others and "Llama-2-7B" not in others and "tokens per second" in speed
    assert missing_results(one_seed.published, one_seed.expected, [llama], speed=True) == [line, others]


def test_ablations_of_the_paper_count_as_rows(one_seed):
    qwen = ModelInfo(name="qwen", title="Qwen2.5-0.5B", variant="joint", published="Qwen/Qwen2.5-0.5B")
    plain = [
        Run(model="qwen", method="patch-joint", pattern="hybrid", sparsity=level, tile=128, seed=0)
        for level in (0.45, 0.35, 0.25)
    ]
    (before, *_) = missing_results(one_seed.published, plain, [qwen])
    assert "PATCH (joint)" not in before and "tile 64×64, 32×32, 16×16, 8×8, 4×4 at 45, 35, 25 %" in before
    # The plain run covers the first value of each varied setting.
    assert "tile prior none, Wanda, Magnitude, random at 45, 35, 25 %; target block at 45, 35, 25 %" in before
    varied = [run.model_copy(update=change) for change in ({"variant": "target=block"}, {"tile": 4}) for run in plain]
    (after, *_) = missing_results(one_seed.published, [*plain, *varied], [qwen])
    assert "target" not in after and "4×4" not in after
    imported = [
        Run(
            model="qwen",
            method="maskllm",
            pattern="2:4",
            sparsity=0.5,
            variant="import=theirs",
        )
    ]
    assert "; MaskLLM 2:4" in before
    assert "; MaskLLM 2:4" not in missing_results(one_seed.published, [*plain, *imported], [qwen])[0]


def test_a_mask_is_paid_once(one_seed):
    costs = measured_costs(one_seed.records)
    masks = {(r.run.model, r.run.pattern, r.run.sparsity) for r in one_seed.records if r.run.method == "patch-tile"}
    runs = sum(record.run.method == "patch-tile" for record in one_seed.records)
    assert (costs["prune", "patch-tile"].jobs, costs["evaluate", "patch-tile"].jobs) == (len(masks), runs)
    assert runs > len(masks)
    assert costs["prune", "patch-tile"].seconds == pytest.approx(3.0 * len(masks))
    assert costs["evaluate", "dense"].peak_memory_mb == 800
    assert "peak memory of a job: 800 MB" in cost_line(one_seed.records)


def test_environments_that_differ_are_said(one_seed):
    first, *others = one_seed.records
    assert "torch 2.5," in environment_line(one_seed.records)
    changed = first.model_copy(
        update={"environment": first.environment.model_copy(update={"packages": {"torch": "2.6"}})}
    )
    assert "torch 2.6 and 2.5," in environment_line([changed, *others])
