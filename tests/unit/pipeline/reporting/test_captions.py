import re
from pathlib import Path

import pytest

from patch.pipeline.reporting.captions import caption
from patch.pipeline.reporting.figure_style import REACH

ROOT = Path(__file__).parents[4]
FIGURES = ("pareto", "density", "curves", "speedup")


@pytest.mark.parametrize("figure", FIGURES)
def test_captions_are_plain_text_in_every_format(figure):
    """The report renders them as Jinja templates and reStructuredText, the page as Markdown."""
    assert re.fullmatch(r"[A-Z][\w ,.;:()\-]+\.", caption(figure))


def test_the_caption_gives_the_distance_of_points_from_their_sparsity():
    assert f"at most {REACH} points from it" in caption("pareto")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda path: path.name)
def test_the_documentation_shows_a_figure_with_its_caption(page):
    """The name of a stored figure is or ends in that of the figure: `pareto.png`, `smollm2-pareto.png`."""
    names = "|".join(FIGURES)
    text = page.read_text(encoding="utf-8")
    for figure, below in re.findall(rf"images/(?:[^)\s]*-)?({names})\.\w+\)\s+((?:.+\n)+)", text):
        assert caption(figure) in " ".join(below.split()), f"write the caption of {figure} below it"


def test_the_picture_of_the_readme_is_found():
    assert caption("pareto") in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
