import math

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from patch.pipeline.reporting.figure_style import LOOKS, looks, save
from patch.pipeline.reporting.pareto import pareto, pareto_front
from patch.pipeline.results.collect import mean_chance

# Few distinct values, so that ties occur.
POINTS = st.lists(st.tuples(st.sampled_from([0, 0.25, 0.35, 0.5]), st.integers(0, 5).map(float)), max_size=12)


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


def test_legend_names_what_is_drawn(one_seed):
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
    # The part above the break looks as it does without a break, and fills most of the panel's height.
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


def beats(a, b, higher):
    better = a[1] >= b[1] if higher else a[1] <= b[1]
    return a[0] >= b[0] and better and a != b


@given(POINTS, st.booleans())
def test_against_every_pair(points, higher):
    front = pareto_front(points, higher)
    expected = {i for i, point in enumerate(points) if not any(beats(other, point, higher) for other in points)}
    assert set(front) == expected
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_broken_values_are_left_out():
    assert pareto_front([(0.5, math.nan), (0.25, 1.0)], higher_is_better=True) == [1]
