import dataclasses
import re
from html.parser import HTMLParser

import pytest

from patch.pipeline.reporting.layout import Layout
from patch.pipeline.reporting.render import html_page, to_html, write_table
from patch.pipeline.reporting.tables import build_table

VOID = {"meta"}


class Page(HTMLParser):
    """Tables of a page as text; the constructor fails unless every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.rows, self.bold, self.text = [], [], [], set(), ""
        self.spans = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.spans.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.spans[-1].append(int(dict(attributes).get("colspan", 1)))
        elif tag == "b":
            self.bold.add((len(self.rows) - 1, len(self.rows[-1]) - 1))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def build(name, experiment):
    return build_table(name, experiment.frame, experiment.models, experiment.expected)


@pytest.mark.parametrize("name", ["joint", "tile", "tasks"])
def test_the_page_has_the_tables_cells(name, experiment, tmp_path):
    table = build(name, experiment)
    *_, path = write_table(table, tmp_path / name)
    assert path.name == f"{name}.html"
    page, layout = Page(path.read_text()), Layout.of(table)
    assert page.rows[-len(table.rows) :] == layout.texts.values.tolist()
    first = len(page.rows) - len(table.rows)
    assert page.bold == {(first + i, j) for i, j in zip(*layout.bold.nonzero(), strict=True)} and page.bold
    assert page.rows[first - 1] == [name for _, name in layout.texts.columns]
    assert all(note in page.text for note in (*table.notes, table.caption))


def test_models_stand_above_their_columns(one_seed):
    table = build("joint", one_seed)
    page = Page(to_html(table))
    assert page.rows[0] == ["", "Qwen2-mini", "Gemma-3-1B"]
    # The four labels are sparsity, method, pattern and achieved. Only Gemma is the paper's model, with its numbers.
    assert page.spans[0] == [4, 2, 4] and len(page.rows[1]) == 10


def test_a_line_parts_the_sparsities(one_seed):
    table = build("tile", one_seed)
    levels = [row.sparsity for row in table.rows]
    starts = [index for index in range(1, len(levels)) if levels[index] != levels[index - 1]]
    assert [int(row) for row in re.findall(r"\.row(\d+) {\s*border-top:", to_html(table))] == starts


def test_every_text_is_escaped(one_seed):
    evil = "<script>alert('1')</script> & \"x\""
    one_seed.models = [model.model_copy(update={"title": evil}) for model in one_seed.models]
    table = dataclasses.replace(build("tile", one_seed), caption=evil, notes=(evil,))
    table = dataclasses.replace(
        table, rows=tuple(dataclasses.replace(row, method=evil, pattern=evil) for row in table.rows)
    )
    page = Page(to_html(table))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) == 4 + 2 * len(table.rows)  # title, heading, note, model; method and pattern


def test_a_page_needs_nothing_else(one_seed):
    text = to_html(build("joint", one_seed))
    tags = Page(text).tags
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags}
    assert not any({"src", "href", "onclick"} & set(attributes) for _, attributes in tags)
    assert "url(" not in text and "@import" not in text and "://" not in text
    assert "prefers-color-scheme: dark" in text and "tabular-nums" in text and "overflow-x: auto" in text


def test_a_page_without_notes_has_no_place_for_them():
    assert 'class="notes"' not in html_page("A", ["<p>b</p>"])
