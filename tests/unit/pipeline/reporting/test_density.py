import numpy as np
import pytest

from patch.pipeline.reporting.density import density
from patch.pipeline.reporting.figure_style import save


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
    densities = [r.density[name] for r in experiment.records if r.run.model == "qwen" and name in r.density]
    per_level = np.reshape(densities, (-1, 3)).mean(axis=0)
    images = [axis.images[0].get_array() for axis in density(experiment.records, model).axes if axis.images]
    assert [float(image[1, 1]) for image in images] == pytest.approx(list(per_level))


def test_density_without_hybrid_runs_has_a_message(one_seed, tmp_path):
    dense = [record for record in one_seed.records if record.run.method == "dense"]
    figure = density(dense, one_seed.models[0])
    assert "no hybrid run" in figure.axes[0].get_title(loc="left")
    assert save(figure, tmp_path / "density")
