"""Contents of explore.html; tests/workflow/test_explore.py opens it in a browser."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.markers import MarkerStyle

from patch.pipeline.reporting.explore import POINTS, Explored, explore_data, explore_page, marker_path
from patch.pipeline.reporting.figure_style import LOOKS, OTHER_LOOKS
from patch.pipeline.results.record import Record
from patch.pipeline.runs.run import Run

from .conftest import Experiment, make_experiment, write_curve
from .test_hostile_titles import TITLES

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def explored(experiment: Experiment, **changes) -> Explored:
    found = Explored("demo", experiment.frame, experiment.records, experiment.models, experiment.published, {})
    return replace(found, **changes)


def with_runs(experiment: Experiment, change) -> Experiment:
    """Return an experiment with the records that ``change`` returns, and their models."""
    records = [changed for record in experiment.records if (changed := change(record))]
    names = {record.run.model for record in records}
    models = [model for model in experiment.models if model.name in names]
    return replace(experiment, records=records, models=models, expected=[record.run for record in records])


class Page(HTMLParser):
    """Tags of a page, and the text after each start tag."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.parts.append((tag, ""))

    def handle_data(self, data):
        if self.parts:
            tag, text = self.parts[-1]
            self.parts[-1] = tag, text + data

    def handle_comment(self, data):
        raise AssertionError(f"a comment {data!r}")

    def texts(self, tag: str) -> list[str]:
        return [text.strip() for found, text in self.parts if found == tag]


def test_rows_have_the_numbers_of_all_runs(experiment):
    data = explore_data(explored(experiment))
    runs: dict[tuple[str, str], list[Record]] = {}
    for record in experiment.records:
        runs.setdefault((record.run.model, record.run.row), []).append(record)
    for row in data["rows"]:
        records = runs.pop((experiment.models[row["model"]].name, row["name"]))
        run = records[0].run
        assert row["seeds"] == len(records) and row["target"] == pytest.approx(100 * run.sparsity)
        assert (row["series"] is None) == (run.pattern == "dense")
        assert (
            data["settings"][row["setting"]]
            == {None: "", "absmax": "AbsMax", "slim-lora": "AbsMax + SLiM-LoRA"}[run.quantization]
        )
        assert set(row["values"]) == set(records[0].metrics)
        for name, (value, stderr, _) in row["values"].items():
            scale = 1 if name == "perplexity" else 100
            values = [scale * record.metrics[name].value for record in records]
            errors = [scale * record.metrics[name].stderr for record in records]
            spread = np.var(values, ddof=1) / len(values) if len(values) > 1 else 0.0
            assert value == pytest.approx(np.mean(values), rel=1e-4)
            assert stderr == pytest.approx(np.sqrt(np.mean(np.square(errors)) + spread), rel=1e-4)
    assert not runs


def test_published_numbers_are_those_of_the_frame(one_seed):
    data = explore_data(explored(one_seed))
    shown = {
        (one_seed.models[row["model"]].name, metric): published
        for row in data["rows"]
        for metric, (_, _, published) in row["values"].items()
        if row["series"] is None and published is not None
    }
    dense = one_seed.frame[(one_seed.frame["method"] == "dense") & one_seed.frame["published"].notna()]
    expected = {(line.model, line.metric): line.published for line in dense.itertuples()}
    assert len(shown) >= 6 and shown == pytest.approx(expected)
    # Numbers of another model get a chart of their own, which needs its name.
    assert [model["published"] for model in data["models"]] == ["Qwen2.5-0.5B", None, "Llama-2-7B"]


def test_maps_are_means_over_seeds(experiment):
    data = explore_data(explored(experiment))
    assert len(data["maps"]) == 9
    chosen = next(shown for shown in data["maps"] if shown["model"] == 1 and shown["target"] == 65)
    runs = [r for r in experiment.records if (r.run.model, r.run.sparsity) == ("gemma", 0.35) and r.run.tile]
    assert chosen["projections"] == [name.removesuffix("_proj") for name in LAYERS]
    assert chosen["blocks"] == list(range(26))
    for layer, block in (("q_proj", 0), ("down_proj", 25)):
        part = "mlp" if layer == "down_proj" else "self_attn"
        mean = np.mean([record.density[f"model.layers.{block}.{part}.{layer}"] for record in runs])
        assert chosen["cells"][LAYERS.index(layer)][block] == pytest.approx(100 * mean, abs=0.005)


def test_a_layer_that_is_not_pruned_has_no_cell(one_seed):
    def change(record):
        density = {name: value for name, value in record.density.items() if name != "model.layers.0.mlp.up_proj"}
        return record.model_copy(update={"density": density}) if record.run.model == "llama" else None

    shown = explore_data(explored(with_runs(one_seed, change)))["maps"][0]
    assert shown["cells"][LAYERS.index("up_proj")][0] is None and None not in shown["cells"][0]


def test_curves_are_thinned_between_their_ends(one_seed, curves_of):
    data = explore_data(explored(one_seed, curves=curves_of))
    assert [curve["label"] for curve in data["curves"]][:2] == ["MaskLLM, 2:4", "PATCH (joint), 45 %"]
    for curve, path in zip(data["curves"], curves_of.values(), strict=True):
        steps, values = curve["values"]["kept_norm"]
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert steps[0] == 0 and steps[-1] == 199 and len(steps) == POINTS
        assert values == pytest.approx([lines[step]["kept_norm"] for step in steps], rel=1e-4)


def test_a_short_curve_is_whole_and_shows_its_initial_mask(one_seed, tmp_path):
    run = Run(model="qwen", method="maskllm", pattern="2:4", sparsity=0.5)
    lines = [{"step": step, "loss": 3.0, "held_out_loss": None if step else 3.25} for step in range(3)]
    lines[0]["initial_held_out_loss"] = 3.5
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (curve,) = explore_data(explored(one_seed, curves={run: tmp_path / "c.jsonl"}))["curves"]
    assert curve["values"] == {"cross_entropy": [[0, 1, 2], [3.0] * 3], "held_out_loss": [[0], [3.25]]}
    assert curve["initial"] == 3.5


def test_an_ablation_is_a_setting_and_an_imported_mask_is_not(one_seed):
    def change(record):
        run = record.run
        variant = {"wanda": "import=theirs", "maskllm": "lr=0.001"}.get(run.method)
        plain = run.model == "qwen" and run.pattern == "2:4"
        return record.model_copy(update={"run": run.model_copy(update={"variant": variant})}) if plain else None

    data = explore_data(explored(with_runs(one_seed, change)))
    assert data["settings"] == ["", "lr: 0.001"]
    found = {data["series"][row["series"]]["label"]: (row["setting"], row["detail"]) for row in data["rows"]}
    assert found["MaskLLM, 2:4"] == (1, "lr: 0.001")
    assert found["Wanda (imported), 2:4"] == (0, "imported: theirs")


def test_one_model_without_tasks_and_without_learned_runs(one_seed):
    def change(record):
        kept = {"perplexity": record.metrics["perplexity"]}
        one_shot = record.run.model == "qwen" and record.run.method in ("dense", "wanda")
        return record.model_copy(update={"metrics": kept}) if one_shot else None

    page = explore_page(explored(with_runs(one_seed, change)))
    parsed = Page(page)
    assert parsed.texts("h2") == ["Quality against sparsity"] and parsed.texts("option") == ["Perplexity"]
    assert "Qwen2-mini" in "".join(text for _, text in parsed.parts)


def test_dense_alone_has_a_page(one_seed):
    dense = with_runs(one_seed, lambda record: record if record.run.method == "dense" else None)
    data = explore_data(explored(dense))
    assert len(data["rows"]) == 3 and not data["series"] and not data["maps"] and not data["curves"]
    assert "Quality against sparsity" in explore_page(explored(dense))


def test_titles_are_text(one_seed):
    titles = [title.replace("SECRET", "x") for title in TITLES]
    models = [one_seed.models[0].model_copy(update={"title": title}) for title in titles]
    plain, page = (explore_page(explored(one_seed, models=[*one_seed.models, *more])) for more in ([], models))
    expected, found = Page(plain), Page(page)
    assert {tag for tag, _ in found.parts} == {tag for tag, _ in expected.parts}
    assert len(found.texts("script")) == len(expected.texts("script")) == 3
    data = json.loads(found.texts("script")[0])
    assert [model["title"] for model in data["models"][3:]] == titles
    inputs = found.texts("input")
    assert inputs[3 : 3 + len(titles)] == titles


def test_markers_have_the_outline_of_the_figures():
    for look in [*LOOKS.values(), *OTHER_LOOKS]:
        shape = marker_path(look.marker)
        marker = MarkerStyle(look.marker)
        box = marker.get_path().transformed(marker.get_transform()).get_extents()
        numbers = np.array(re.findall(r"-?[0-9.]+(?:e-?[0-9]+)?", shape), dtype=float)
        x, y = numbers[::2], -numbers[1::2]
        found, expected = (x.min(), y.min(), x.max(), y.max()), 2 * box.get_points().ravel()
        assert found == pytest.approx(expected, abs=0.01), look.marker
        assert shape.startswith("M") and shape.endswith("Z")


def test_the_page_of_the_papers_grid_is_small(tmp_path):
    """A model has 40 blocks of seven layers, three ratios of PATCH, and five learned runs of 2,000 steps each."""
    experiment = make_experiment()
    (sample,) = (record for record in experiment.records if record.run.row == "patch-joint_hybrid_0.25_t128")
    layers = [f"model.layers.{block}.{name}" for block in range(40) for name in LAYERS]
    density = {name: 0.5 + 0.00123456 * index for index, name in enumerate(layers)}
    fixed = [Run(model="m", method=name, pattern="2:4", sparsity=0.5) for name in ("wanda", "sparsegpt", "thanos")]
    learned = [Run(model="m", method=name, pattern="2:4", sparsity=0.5) for name in ("proxsparse", "maskllm")]
    hybrid = {"model": "m", "method": "patch-joint", "pattern": "hybrid", "tile": 128}
    learned += [Run(**hybrid, sparsity=level) for level in (0.45, 0.35, 0.25)]
    quantized = [run.model_copy(update={"quantization": kind}) for run in learned for kind in ("absmax", "slim-lora")]
    path = write_curve(tmp_path / "curve.jsonl", 2000, 0.55)

    def size(names: list[str]) -> int:
        models = [experiment.models[1].model_copy(update={"name": name}) for name in names]
        records, curves = [], {}
        for name in names:
            for run in (run.model_copy(update={"model": name}) for run in (*fixed, *learned, *quantized)):
                found = {"run": run, "density": density if run.tile else {}}
                records.append(sample.model_copy(update=found))
                curves |= {run: path} if run.definition.stage == "learn" and not run.derived else {}
        page = explore_page(explored(replace(experiment, records=records, models=models), curves=curves))
        data = json.loads(Page(page).texts("script")[0])
        assert (len(data["maps"]), len(data["curves"])) == (3 * len(names), 5 * len(names))
        return len(page.encode())

    one, two = size(["a"]), size(["a", "b"])
    models = 11
    assert two - one > 20_000 and one + (models - 1) * (two - one) < 3e6
