import json

import numpy as np
import pandas as pd
import pytest

from patch.errors import InputError
from patch.pipeline.reporting.curves import read_curve
from patch.pipeline.reporting.figures import curves, density, pareto, save
from patch.pipeline.reporting.style import LOOKS, looks
from patch.pipeline.results.collect import mean_chance


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_save_writes_three_files_without_a_date(one_seed, tmp_path):
    figure = pareto(one_seed.frame, one_seed.models[0], chance=30.0)
    paths = save(figure, tmp_path / "sub" / "pareto.0.45")
    assert [path.name for path in paths] == ["pareto.0.45.svg", "pareto.0.45.pdf", "pareto.0.45.png"]
    first = [path.read_bytes() for path in paths]
    assert all(first)
    save(pareto(one_seed.frame, one_seed.models[0], chance=30.0), tmp_path / "sub" / "pareto.0.45")
    assert [path.read_bytes() for path in paths] == first
    assert len(list((tmp_path / "sub").iterdir())) == 3


def test_published_numbers_share_axes_only_where_comparable(one_seed):
    other, same, _ = one_seed.models
    assert len(pareto(one_seed.frame, other).axes) == 4
    assert len(pareto(one_seed.frame, same).axes) == 2
    frame = one_seed.frame.assign(published=np.nan)
    alone = pareto(frame, other)
    assert len(alone.axes) == 2
    assert not any("ublished" in text for text in texts(alone))


def test_points_of_one_sparsity_do_not_coincide(one_seed):
    axis = pareto(one_seed.frame, one_seed.models[2]).axes[0]
    x = [float(container.lines[0].get_xdata()[0]) for container in axis.containers]
    at_half = sorted(value for value in x if abs(value - 50) < 2.5)
    assert len(at_half) == 4
    assert min(np.diff(at_half)) > 0.5


def test_legend_says_what_is_drawn(one_seed):
    model = one_seed.models[2]
    labels = texts(pareto(one_seed.frame, model, mean_chance(one_seed.records, model.name)))
    assert {"Wanda, 2:4", "Wanda, unstructured", "PATCH (tile)", "Dense"} <= set(labels)


def test_chance_is_a_line_at_its_place_where_it_is_near(one_seed):
    frame, model = one_seed.frame, one_seed.models[2]
    lowest = frame[(frame["model"] == model.name) & (frame["metric"] == "accuracy")]["value"].min()
    figure = pareto(frame, model, lowest - 1)
    assert "Chance" in texts(figure)
    assert any(np.allclose(line.get_ydata(), lowest - 1) for line in figure.axes[0].lines)
    assert not any("chance" in text.get_text() for text in figure.axes[0].texts)


def test_the_axis_is_broken_where_chance_is_far(one_seed):
    frame, model = one_seed.frame, one_seed.models[2]
    lowest = frame[(frame["model"] == model.name) & (frame["metric"] == "accuracy")]["value"].min()
    whole, broken = pareto(frame, model).axes[0], pareto(frame, model, lowest - 60).axes[0]
    (low, high), (foot, top) = whole.get_ylim(), broken.get_ylim()
    # What is above the break is drawn as without it, in most of the panel's height.
    assert top == high and 0.8 < (high - low) / (top - foot) < 0.9
    assert all(low <= tick <= high for tick in broken.get_yticks())
    added = broken.lines[len(whole.lines) :]
    line, gap, strokes = added
    assert foot < line.get_ydata()[0] == line.get_ydata()[1] < gap.get_ydata()[0] < gap.get_ydata()[1] < low
    assert not gap.get_clip_on() and list(strokes.get_ydata()) == list(gap.get_ydata())
    (label,) = broken.texts
    assert label.get_text() == f"chance {lowest - 60:.1f} %"
    assert line.get_ydata()[0] <= label.get_position()[1] < low
    assert "Chance" in texts(pareto(frame, model, lowest - 60))


def test_ablations_are_not_in_the_panels(one_seed):
    frame, model = one_seed.frame, one_seed.models[2]
    plain = frame[(frame["model"] == model.name) & (frame["pattern"] == "hybrid")]
    worse = plain.assign(variant="tile_prior=random", value=2 * plain["value"])
    axes = [pareto(some, model).axes for some in (frame, pd.concat([frame, worse], ignore_index=True))]
    for before, after in zip(*axes, strict=True):
        assert len(before.containers) == len(after.containers) and before.get_ylim() == after.get_ylim()


def test_a_broken_perplexity_does_not_flatten_the_panel(one_seed):
    frame = one_seed.frame
    broken = (frame["method"] == "magnitude") & (frame["metric"] == "perplexity")
    frame.loc[broken, "value"] = np.inf
    figure = pareto(frame, one_seed.models[2])
    assert figure.axes[1].get_ylim()[1] < 1000
    assert "On the upper edge: beyond the axis" in texts(figure)


def test_a_lone_dense_run_can_be_drawn(one_seed, tmp_path):
    frame = one_seed.frame
    assert save(pareto(frame[frame["method"] == "dense"], one_seed.models[0]), tmp_path / "f")
    assert save(pareto(frame[:0], one_seed.models[0]), tmp_path / "f")


def test_unknown_methods_get_looks_of_their_own():
    found = looks(["wanda", "mine", "yours"])
    assert found["wanda"] == LOOKS["wanda"]
    assert len({(look.marker, look.color) for look in found.values()}) == 3


@pytest.mark.parametrize("index", [0, 1])
def test_density_shows_every_linear(one_seed, tmp_path, index):
    model = one_seed.models[index]
    figure = density(one_seed.records, model)
    maps = [axis for axis in figure.axes if axis.images]
    assert len(maps) == 3
    first = next(r for r in one_seed.records if r.run.model == model.name and r.run.sparsity == 0.45 and r.density)
    assert maps[0].images[0].get_array().size == len(first.density)
    assert all(path.stat().st_size for path in save(figure, tmp_path / "density"))


def test_density_values_are_means_over_seeds(experiment):
    model = experiment.models[0]
    name = "model.layers.1.self_attn.k_proj"
    shares = [r.density[name] for r in experiment.records if r.run.model == "qwen" and name in r.density]
    per_level = np.reshape(shares, (-1, 3)).mean(axis=0)
    images = [axis.images[0].get_array() for axis in density(experiment.records, model).axes if axis.images]
    assert [float(image[1, 1]) for image in images] == pytest.approx(list(per_level))


def test_density_without_hybrid_runs_says_so(one_seed, tmp_path):
    dense = [record for record in one_seed.records if record.run.method == "dense"]
    figure = density(dense, one_seed.models[0])
    assert "no hybrid run" in figure.axes[0].get_title(loc="left")
    assert save(figure, tmp_path / "density")


def test_curves(one_seed, curves_of, tmp_path):
    figure = curves(curves_of, one_seed.models[0])
    assert texts(figure) == list(curves_of)
    loss, cross_entropy, densities, temperature = figure.axes
    assert len(loss.lines) == len(cross_entropy.lines) == 2 * len(curves_of)
    assert len(densities.lines) == 2 * (len(curves_of) - 1)
    assert len(temperature.lines) == 2  # the runs share their schedules
    assert all(path.stat().st_size for path in save(figure, tmp_path / "curves"))


def test_curves_with_missing_keys(one_seed, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 3.0}) + "\n" for step in range(3)))
    assert save(curves({"run": path}, one_seed.models[0]), tmp_path / "curves")


def test_curves_of_extreme_numbers_can_be_drawn(one_seed, tmp_path):
    path = tmp_path / "c.jsonl"
    values = (1e300, -1e300, 0, 2**63 - 1, None)
    keys = ("loss", "density", "target_density", "tile_temperature")
    lines = [{"step": 2**60 * step, **dict.fromkeys(keys, value)} for step, value in enumerate(values)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert save(curves({"run": path}, one_seed.models[0]), tmp_path / "curves")


@pytest.mark.parametrize("text", [None, "{", '{"loss": 1}\n', "[1]\n", ""])
def test_broken_curves_are_named(tmp_path, text):
    path = tmp_path / "c.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"c\.jsonl"):
        read_curve(path)
