import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from patch.pipeline.reporting.density import density
from patch.pipeline.reporting.figure_style import save


def maps(figure):
    return [axis for axis in figure.axes if axis.images]


def luminance(color):
    """Return the relative luminance of WCAG 2.1."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def deep(record, blocks):
    """Return a record with all densities between 0.5 and 1, in a number of blocks."""
    names = [f"layers.{i}.{part}" for i in range(blocks) for part in ("self_attn.v_proj", "mlp.up_proj")]
    return record.model_copy(update={"density": dict(zip(names, np.linspace(0.5, 1, len(names)), strict=True))})


@pytest.fixture
def hybrid(one_seed):
    return [record for record in one_seed.records if record.run.model == "qwen" and record.density]


@pytest.mark.parametrize("index", [0, 1])
def test_density_shows_every_linear(one_seed, tmp_path, index):
    model = one_seed.models[index]
    figure = density(one_seed.records, model)
    assert len(maps(figure)) == 3
    first = next(r for r in one_seed.records if r.run.model == model.name and r.run.sparsity == 0.45 and r.density)
    assert maps(figure)[0].images[0].get_array().size == len(first.density)
    assert all(path.stat().st_size for path in save(figure, tmp_path / "density"))


def test_values_are_deviations_from_the_target_averaged_over_seeds(experiment):
    model = experiment.models[0]
    name = "model.layers.1.self_attn.k_proj"
    records = [r for r in experiment.records if r.run.model == "qwen" and name in r.density]
    for axis, level in zip(maps(density(experiment.records, model)), (0.45, 0.35, 0.25), strict=True):
        densities = [r.density[name] for r in records if r.run.sparsity == level]
        expected = 100 * (math.fsum(densities) / len(densities) - (1 - level))
        assert float(axis.images[0].get_array()[1, 1]) == pytest.approx(expected)


def test_all_maps_share_one_scale_that_is_white_at_the_target(one_seed):
    images = [axis.images[0] for axis in maps(density(one_seed.records, one_seed.models[0]))]
    (limits,) = {image.get_clim() for image in images}
    assert limits[0] == -limits[1] and all(abs(image.get_array()).max() <= limits[1] for image in images)
    image = images[0]
    assert luminance(image.cmap(image.norm(0.0))) > 0.9
    red, blue = image.cmap(image.norm(limits[0])), image.cmap(image.norm(limits[1]))
    assert red[0] > red[2] and blue[2] > blue[0]


def test_every_value_is_legible_on_its_cell(hybrid, one_seed):
    records = [deep(record, 12) for record in hybrid]
    colors = set()
    for axis in maps(density(records, one_seed.models[0])):
        image = axis.images[0]
        assert len(axis.texts) == image.get_array().size
        for text in axis.texts:
            column, row = text.get_position()
            cell = image.cmap(image.norm(image.get_array()[row, column]))
            assert contrast(text.get_color(), cell[:3]) >= 4.5 and text.get_fontsize() >= 7
            colors.add(text.get_color())
    assert colors == {"black", "white"}


@pytest.mark.parametrize(("blocks", "printed"), [(2, True), (12, True), (30, True), (32, True), (80, False)])
def test_values_are_printed_where_they_fit(hybrid, one_seed, blocks, printed):
    figure = density([deep(record, blocks) for record in hybrid], one_seed.models[0])
    figure.draw_without_rendering()
    for axis in maps(figure):
        assert bool(axis.texts) == printed
        cell = axis.get_window_extent().width / blocks
        assert all(text.get_window_extent().width <= cell for text in axis.texts)
        labels = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_visible()]
        assert all(a.x1 < b.x0 for a, b in zip(labels, labels[1:], strict=False))


def test_numbers_that_round_to_zero_have_no_sign(hybrid, one_seed):
    record = hybrid[0].model_copy(update={"density": {f"layers.{i}.v_proj": 0.55 - 1e-5 for i in range(30)}})
    (axis,) = maps(density([record], one_seed.models[0]))
    assert record.run.sparsity == 0.45 and {text.get_text() for text in axis.texts} == {"0"}


def test_density_without_hybrid_runs_has_a_message(one_seed, tmp_path):
    dense = [record for record in one_seed.records if record.run.method == "dense"]
    figure = density(dense, one_seed.models[0])
    assert "no hybrid run" in figure.axes[0].get_title(loc="left")
    assert save(figure, tmp_path / "density")
