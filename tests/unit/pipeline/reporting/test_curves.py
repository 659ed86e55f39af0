import json

import pytest

from patch.errors import InputError
from patch.pipeline.reporting.curves import curves, read_curve
from patch.pipeline.reporting.figure_style import save


def test_curves(one_seed, curves_of, tmp_path):
    figure = curves(curves_of, one_seed.models[0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(curves_of)
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
