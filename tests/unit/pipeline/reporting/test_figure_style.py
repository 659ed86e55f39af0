import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from patch.pipeline.reporting import figure_style as style
from patch.pipeline.reporting.figure_style import LOOKS, Look, Series, looks

# Simulation of colour-blind vision in linear RGB (Machado, Oliveira and Fernandes, 2009), severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def lab(color, vision):
    """Return the CIELAB coordinates of an sRGB colour as seen with a vision."""
    rgb = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(np.array(TO_XYZ) @ np.clip(np.array(VISION[vision]) @ linear, 0, 1) / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def series(method, pattern="2:4"):
    return Series(method, pattern, None, False, LOOKS.get(method, Look("o", "#444444")))


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_methods_differ_for_colour_blind_readers(vision):
    colors = {look.color for look in LOOKS.values()}
    assert len(colors) == len(LOOKS) - 1  # both variants of PATCH share one
    for a, b in itertools.combinations(colors, 2):
        assert np.linalg.norm(lab(a, vision) - lab(b, vision)) > 12
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS) - 1  # dense is a line, MaskLLM a disc


def test_learned_masks_have_an_outline_of_their_own():
    edges = {name: style.marker(series(name))["markeredgecolor"] for name in LOOKS if name != "dense"}
    learned = {"proxsparse", "maskllm", "patch-joint", "patch-tile"}
    assert {name for name, edge in edges.items() if edge == "black"} == learned
    assert style.marker(series("mine"))["markeredgecolor"] != "black"


def test_unknown_methods_get_looks_of_their_own():
    found = looks(["wanda", "mine", "yours"])
    assert found["wanda"] == LOOKS["wanda"]
    assert len({(look.marker, look.color) for look in found.values()}) == 3


@pytest.mark.parametrize("sizes", [(4, 2, 3, 5), (0, 0, 0, 2), (1, 0, 12, 3), (6, 0, 1, 2)])
def test_a_grouped_legend_has_every_entry_below_its_heading(sizes):
    names = ("First", "Second", "Third", "")
    groups = {
        name: [Line2D([], [], label=f"{name} {index}") for index in range(size)]
        for name, size in zip(names, sizes, strict=True)
    }
    figure = Figure(figsize=(6, 2), layout="constrained")
    style.add_grouped_legend(figure, groups, 3)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    entries = [text for text in texts if text and text not in names]
    assert entries == [f"{name} {index}" for name, size in zip(names, sizes, strict=True) for index in range(size)]
    for name, size in zip(names[:3], sizes, strict=False):
        assert (name in texts) == bool(size) and (not size or texts[texts.index(name) + 1] == f"{name} 0")
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().height < figure.bbox.height - 100
