import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from patch.errors import InputError
from patch.pipeline.reporting.curves import curves, read_curve
from patch.pipeline.reporting.figure_style import LOOKS, save
from patch.pipeline.runs.run import Run

PROXSPARSE = Run(model="qwen", method="proxsparse", pattern="2:4", sparsity=0.5)
MASKLLM = Run(model="qwen", method="maskllm", pattern="2:4", sparsity=0.5)


def panels(figure):
    return {axis.get_ylabel().removesuffix(" (nats)"): axis for axis in figure.axes}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_panels_have_the_curves_that_have_values(one_seed, curves_of, tmp_path):
    figure = curves(curves_of, one_seed.models[0])
    shown = panels(figure)
    assert list(shown) == ["Cross-entropy", "Density", "Kept norm"]
    assert len(shown["Cross-entropy"].lines) == len(shown["Kept norm"].lines) == 4
    densities, targets = shown["Density"].lines[:3], shown["Density"].lines[3:]
    for line, target, level in zip(densities, targets, (0.55, 0.65, 0.75), strict=True):
        assert set(target.get_ydata()) == {level} and abs(line.get_ydata()[-1] - level) < 0.01
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["MaskLLM, 2:4", "PATCH (joint), 45 %"] and "Target density" in labels
    assert all(path.stat().st_size for path in save(figure, tmp_path / "curves"))


def test_the_loss_of_proxsparse_is_drawn_as_its_cross_entropy(one_seed, curves_of, tmp_path):
    rows = [{"step": step, "loss": 4.0, "penalty": 0.1} for step in range(50)]
    files = {PROXSPARSE: write(tmp_path / "p.jsonl", rows)} | curves_of
    axis = panels(curves(files, one_seed.models[0]))["Cross-entropy"]
    assert len(axis.lines) == 5 and np.allclose(axis.lines[0].get_ydata(), 4.0)
    # The losses of the others have more terms; `write_curve` puts them half a nat lower.
    assert all(abs(np.mean(line.get_ydata()) - 3.5) < 0.1 for line in axis.lines[1:])


def test_the_cross_entropy_is_a_moving_average(one_seed, tmp_path):
    values = np.random.default_rng(0).normal(3, 0.1, 100)
    rows = [{"step": 2 * i, "cross_entropy": value} for i, value in enumerate(values)]
    axis = panels(curves({MASKLLM: write(tmp_path / "c.jsonl", rows)}, one_seed.models[0]))["Cross-entropy"]
    drawn = axis.lines[0].get_ydata()
    assert drawn[50] == pytest.approx(np.mean(values[45:55])) and list(axis.lines[0].get_xdata()[:2]) == [0, 2]


def test_held_out_losses_are_points_beside_the_initial_mask(one_seed, tmp_path):
    rows = [{"step": step, "cross_entropy": 3.0} for step in range(40)]
    rows[0]["initial_held_out_loss"] = 3.9
    for step in (19, 39):
        rows[step]["held_out_loss"] = 3.5 + step / 100
    files = {MASKLLM: write(tmp_path / "m.jsonl", rows), PROXSPARSE: write(tmp_path / "p.jsonl", rows[:20])}
    figure = curves(files, one_seed.models[0])
    measured, initial, other, _ = panels(figure)["Held-out loss"].lines
    assert measured.get_xydata().tolist() == [[19, 3.69], [39, 3.89]] and measured.get_marker() == "o"
    assert set(initial.get_ydata()) == {3.9} and initial.get_linestyle() == "--"
    assert initial.get_color() == measured.get_color() != other.get_color()
    assert "Initial mask" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_runs_have_the_marker_and_hue_of_their_method_and_a_shade_of_their_own(one_seed, curves_of):
    lines = panels(curves(curves_of, one_seed.models[0]))["Kept norm"].lines
    assert [line.get_marker() for line in lines] == ["o", "*", "*", "*"]
    for line, method in ((lines[0], "maskllm"), (lines[2], "patch-joint")):
        assert to_rgb(line.get_color()) == pytest.approx(to_rgb(LOOKS[method].color))
    lightness = [sum(to_rgb(line.get_color())) for line in lines[1:]]
    assert lightness == sorted(lightness) and min(np.diff(lightness)) > 0.3


def test_runs_that_differ_in_tile_or_variant_have_labels_of_their_own(one_seed, curves_of):
    *_, path = curves_of.values()
    patch = Run(model="qwen", method="patch-joint", pattern="hybrid", sparsity=0.45, tile=16)
    changed = [{"tile": 32}, {"variant": "tile_prior=wanda"}]
    files = {run: path for run in (patch, *(patch.model_copy(update=update) for update in changed))}
    labels = {text.get_text() for text in curves(files, one_seed.models[0]).legends[0].get_texts()}
    assert labels == {
        "PATCH (joint), tile 16, 45 %",
        "PATCH (joint), tile 32, 45 %",
        "PATCH (joint), tile 16, 45 %, tile prior: Wanda",
        "Target density",
    }


def test_curves_with_missing_keys(one_seed, tmp_path):
    path = write(tmp_path / "c.jsonl", [{"step": step, "loss": 3.0} for step in range(3)])
    assert save(curves({MASKLLM: path}, one_seed.models[0]), tmp_path / "curves")


def test_curves_of_extreme_numbers_can_be_drawn(one_seed, tmp_path):
    values = (1e300, -1e300, 0, 2**63 - 1, None)
    keys = ("loss", "density", "target_density", "kept_norm", "held_out_loss", "initial_held_out_loss")
    lines = [{"step": 2**60 * step, **dict.fromkeys(keys, value)} for step, value in enumerate(values)]
    path = write(tmp_path / "c.jsonl", lines)
    assert save(curves({MASKLLM: path}, one_seed.models[0]), tmp_path / "curves")


@pytest.mark.parametrize("text", [None, "{", '{"loss": 1}\n', "[1]\n", ""])
def test_broken_curves_are_named(tmp_path, text):
    path = tmp_path / "c.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"c\.jsonl"):
        read_curve(path)
