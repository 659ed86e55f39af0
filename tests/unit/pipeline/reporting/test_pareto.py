import math

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from patch.pipeline.reporting.figure_style import save
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


def places(axis):
    """Return the distance of each point from the nearest sparsity, by that sparsity."""
    x = [value for container in axis.containers for value in container.lines[0].get_xdata()]
    nearest = [min((25, 35, 45, 50), key=lambda level: abs(level - value)) for value in x]
    return {level: [v - level for v, near in zip(x, nearest, strict=True) if near == level] for level in set(nearest)}


def test_points_of_one_sparsity_are_side_by_side_and_near_it(one_seed):
    frame, model = one_seed.frame, one_seed.models[2]
    rows = frame[(frame["model"] == model.name) & (frame["method"] == "wanda") & (frame["pattern"] == "2:4")]
    many = pd.concat([frame, *(rows.assign(method=f"mine{index}") for index in range(12))], ignore_index=True)
    for shown, count in ((frame, 4), (many, 16)):
        offsets = places(pareto(shown, model).axes[0])
        assert len(offsets[50]) == count
        for of_level in offsets.values():
            assert max(map(abs, of_level)) <= 0.6 + 1e-9
            assert all(np.diff(sorted(of_level)) > 0.05)


def test_the_front_is_drawn_at_the_true_sparsity(one_seed):
    for axis in pareto(one_seed.frame, one_seed.models[1]).axes:
        (front,) = [line for line in axis.lines if line.get_drawstyle() == "steps-pre"]
        x = [float(value) for value in front.get_xdata()]
        assert len(x) > 1 and set(x) <= {0, 25, 35, 45, 50}
        # Each step ends at a measured point, whose offset is its own.
        points = [tuple(point) for container in axis.containers for point in container.lines[0].get_xydata()]
        for level, height in zip(x, front.get_ydata(), strict=True):
            assert level == 0 or any(y == height and abs(at - level) <= 0.6 + 1e-9 for at, y in points)


def test_panels_are_titled_by_the_names_of_the_models(one_seed):
    axes = pareto(one_seed.frame, one_seed.models[0], None, "Qwen2.5-0.5B").axes
    assert axes[0].get_title(loc="left") == "Qwen2-mini, measured"
    assert axes[2].get_title(loc="left").startswith("Qwen2.5-0.5B, as published")


def test_a_model_without_tasks_has_a_figure_of_a_column(one_seed):
    frame = one_seed.frame[one_seed.frame["metric"] == "perplexity"]
    figure = pareto(frame, one_seed.models[1].model_copy(update={"title": "a long title " * 10}))
    assert len(figure.axes) == 1 and figure.get_figwidth() == 3.25
    figure.draw_without_rendering()
    title = figure.axes[0]._left_title.get_window_extent()
    assert title.width < figure.bbox.width and len(figure.axes[0].get_title(loc="left").split("\n")) > 2


def test_legend_names_what_is_drawn(one_seed):
    model = one_seed.models[2]
    labels = texts(pareto(one_seed.frame, model, mean_chance(one_seed.records, model.name)))
    assert {"Wanda, 2:4", "Wanda, unstructured", "PATCH (tile)", "Dense"} <= set(labels)
    learned = labels[labels.index("Learned") :]
    assert {"MaskLLM, 2:4", "PATCH (tile)"} <= set(learned) and "Wanda, 2:4" not in learned


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
    assert "Upper edge: beyond the axis" in texts(figure)


def test_a_lone_dense_run_can_be_drawn(one_seed, tmp_path):
    frame = one_seed.frame
    assert save(pareto(frame[frame["method"] == "dense"], one_seed.models[0]), tmp_path / "f")
    assert save(pareto(frame[:0], one_seed.models[0]), tmp_path / "f")


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
