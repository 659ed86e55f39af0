"""Titles of models with special characters, which every table, figure and page prints unchanged."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from docutils.core import publish_parts
from jinja2 import Environment
from markdown_it import MarkdownIt

from patch.pipeline.reporting.curves import curves
from patch.pipeline.reporting.density import density
from patch.pipeline.reporting.escape import escape_html, escape_label, escape_markdown, escape_rst, escape_tex
from patch.pipeline.reporting.figure_style import save
from patch.pipeline.reporting.pareto import pareto
from patch.pipeline.reporting.render import to_markdown, to_text, write_table
from patch.pipeline.reporting.speedup import speedup
from patch.pipeline.reporting.summary import Results, summary
from patch.pipeline.reporting.table import Table
from patch.pipeline.reporting.tables import build_table
from patch.pipeline.results.differences import COLUMNS, Differences
from patch.pipeline.results.speed import SpeedRecord, Speeds
from patch.pipeline.runs.run import ModelInfo, Run

ROOT = Path(__file__).parents[4]
SECRET = "the contents of another file"
TITLES = [
    "$^$",
    "$",
    "a$b",
    "\\",
    "$\\frac{$",
    "a_b*c|d",
    "*a* **b** __c__ `d` ``e``",
    "`",
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!-- a --> -- &lt; & &#60;",
    "\\input{x} \\write18{y}",
    ".. include:: SECRET",
    ".. raw:: html",
    "`link <javascript:alert(1)>`_ :raw:`x` |substitution| target_ [1]_",
    "http://example.com mailto:a@example.com javascript:alert(1)",
    "![x](y) [a](b) <http://c> ~~d~~",
    "|x|",
    "%",
    "50 % & more #1 {x} {{y}} {wildcards.model} ~ ^",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "[0] *",
    "a -- b --- c ?` !` << >> 'd' \"e\"",
    "Größe ± 2 × 3 − 4 – 模型",
]
WHOLE = "$^$ a_b*c|d <script> \\input{x} ` .. include:: |x| % & #"


class Page(HTMLParser):
    """Tags of a page, and the texts between them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.runs: list[str] = [""]
        self.feed(page)
        self.text = "".join(self.runs)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.runs.append("")

    def handle_endtag(self, tag: str) -> None:
        self.runs.append("")

    def handle_data(self, data: str) -> None:
        self.runs[-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment {data!r}")


def markdown(text: str) -> Page:
    """Return text as GitHub renders it, including HTML in the text."""
    return Page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def untex(text: str) -> str:
    """Return the text that LaTeX prints; fail on characters that it would read as a command or a ligature."""
    known = {
        r"\textbackslash{}": "\\",
        r"\textasciitilde{}": "~",
        r"\textasciicircum{}": "^",
        r"\`{}": "`",
        "-{}": "-",
        r"\textbar{}": "|",
        r"\textless{}": "<",
        r"\textgreater{}": ">",
        **{f"\\{character}": character for character in "{}&%$#_"},
        **{f"{{{character}}}": character for character in "[*"},
        r"$\pm$": "±",
        r"$\times$": "×",
        "$-$": "−",
        "--": "–",
    }
    pattern = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    rest = re.sub(pattern, "", text)
    left = set(rest) & set("\\{}$&%#_~^|<>`")
    assert not left and rest[:1] not in ("[", "*") and "--" not in rest, f"{rest!r} is left for LaTeX to read"
    return re.sub(pattern, lambda match: known[match[0]], text)


def rst(text: str) -> Page:
    """Return text as Snakemake's report renders it; fail if docutils reports an error."""
    errors = io.StringIO()
    body = publish_parts(text, writer="html", settings_overrides={"warning_stream": errors})["html_body"]
    assert not errors.getvalue() and "system-message" not in body, errors.getvalue()
    return Page(body)


def titled(title: str, experiment: Any) -> list[ModelInfo]:
    first, *others = experiment.models
    return [first.model_copy(update={"title": title}), *others]


@pytest.fixture
def tables(one_seed: Any, speed_record: Callable) -> Callable[[list[ModelInfo]], list[Table]]:
    """Return a function that makes tables of every kind, which name the given models."""

    def make(models: list[ModelInfo]) -> list[Table]:
        record = SpeedRecord.model_validate(speed_record("qwen", "joint", 16))
        speeds = Speeds([record], one_seed.published)
        names, frame = ("joint", "unstructured", "tasks", "density", "speedup"), one_seed.frame
        return [build_table(name, frame, models, one_seed.expected, speeds=speeds) for name in names]

    return make


@pytest.mark.parametrize("title", TITLES)
def test_each_escape_gives_the_text_back(title: str) -> None:
    assert Page(f"<p>{escape_html(title)}</p>").text == title
    for around in ("{}", "a {} b", "- {}", "| a |\n| --- |\n| {} |", "**{}**", "### {}"):
        page = markdown(around.format(escape_markdown(title)))
        assert title in page.text and not page.tags & {"a", "img", "script", "em", "s", "code", "ol", "blockquote"}
    assert untex(escape_tex(title)) == title
    for around in ("{}", "- **a:** {}.", "a\n\n  {}"):
        page = rst(around.format(escape_rst(title)))
        assert title in page.text and not page.tags & {"a", "img", "script", "em", "code", "tt", "cite"}
    in_script = json.dumps(escape_label(title))
    assert not re.search(r"</|<!|<script", in_script) and not re.search(r"\{\s*[\w.]+", in_script)
    assert escape_label(title).replace("\u2060", "") == title


def test_lines_stay_lines() -> None:
    for escape in (escape_markdown, escape_tex, escape_rst):
        assert escape("a\n\n  b\u2028c\rd") == "a b c d"


@pytest.mark.parametrize("title", TITLES)
def test_every_kind_of_table_prints_the_title(
    title: str, one_seed: Any, tables: Callable[[list[ModelInfo]], list[Table]], tmp_path: Path
) -> None:
    named = set()
    for table in tables(titled(title, one_seed)):
        stem = tmp_path / table.name
        write_table(table, stem)
        page = Page(Path(f"{stem}.html").read_text())
        assert not page.tags & {"script", "img", "a", "iframe"}
        rendered = markdown(Path(f"{stem}.md").read_text())
        rows = Path(f"{stem}.md").read_text().splitlines()
        assert not rendered.tags & {"script", "img", "a", "em", "code", "s"}, table.name
        assert rendered.runs.count("") and "table" in rendered.tags
        if any(title in (row.model, *(h.model.title for h in table.header if h.model)) for row in table.rows):
            named.add(table.name)
            assert title in page.text and title in rendered.text and title in to_text(table)
            assert escape_tex(title) in Path(f"{stem}.tex").read_text()
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows if row.startswith("|")}) == 1
        if table.names_models:
            with Path(f"{stem}.csv").open(newline="") as file:
                assert title in {row["model"] for row in csv.DictReader(file)}
    assert named == {"joint", "unstructured", "tasks", "density", "speedup"}


@pytest.mark.parametrize("title", TITLES)
def test_the_summary_prints_the_title(
    title: str, one_seed: Any, tables: Callable[[list[ModelInfo]], list[Table]]
) -> None:
    models = titled(title, one_seed)
    made = tables(models)
    runs = [run for run in one_seed.expected if run.model == "qwen"]
    one_shot, hybrid = ([run.row for run in runs if run.pattern == pattern] for pattern in ("2:4", "hybrid"))
    pairs = [*zip(one_shot, one_shot[1:], strict=False), *((row, hybrid[0]) for row in one_shot)]
    lines = [("qwen", "perplexity", 0.5, a, b, 0.1, 1.0, 100, 1, "abcd") for a, b in pairs]
    page = summary(
        Results(
            experiment="demo",
            run={"Models": f"{title} (hub {title})", "Tasks": title},
            tables=made,
            records=one_seed.records,
            differences=Differences(pd.DataFrame(lines, columns=COLUMNS)),
            models=models,
            expected=one_seed.expected,
            published=one_seed.published,
            command="snakemake",
            figures={title: {"pareto": "figures/qwen/pareto.png"}},
        )
    )
    rendered = markdown(page)
    assert not rendered.tags & {"script", "em", "s", "blockquote", "ol"}
    assert rendered.text.count(title) > 10 and f"{title}: PATCH at 45 % cannot be distinguished" in rendered.text
    links = [
        token.attrs["href"]
        for block in MarkdownIt().parse(page)
        for token in block.children or []
        if token.type == "link_open"
    ]
    assert links == ["tables/tasks.md"]
    code = {
        token.content
        for block in MarkdownIt().parse(page)
        for token in block.children or []
        if token.type == "code_inline"
    }
    assert code <= {"demo", "python -m patch status", *(table.name for table in made)}
    (image,) = re.findall(r"^!\[(.*)\]\(figures/qwen/pareto.png\)$", page, re.MULTILINE)
    assert image == f"{escape_markdown(title)}: pareto"
    for table in made:
        assert (to_markdown(table).rstrip("\n") in page) == (table.name != "tasks")


@pytest.mark.parametrize("title", ["$^$", "$", "a$b$c\\$", "a -- b", WHOLE])
@pytest.mark.parametrize("figure", ["pareto", "density", "curves", "speedup"])
def test_every_figure_draws_the_title(
    title: str, figure: str, one_seed: Any, curves_of: dict[Run, Path], speed_record: Callable
) -> None:
    model = titled(title, one_seed)[0]
    record = SpeedRecord.model_validate(speed_record("qwen", "joint", 16))
    drawn = {
        "pareto": lambda: pareto(one_seed.frame, model, 30.0),
        "density": lambda: density(one_seed.records, model),
        "curves": lambda: curves(curves_of, model),
        "speedup": lambda: speedup(one_seed.frame, record, model),
    }[figure]()
    texts = [text for text in drawn.findobj(lambda part: hasattr(part, "get_parse_math")) if title in text.get_text()]
    assert texts and not any(text.get_parse_math() for text in texts)
    content = io.BytesIO()
    drawn.savefig(content, format="svg")
    ElementTree.fromstring(content.getvalue())


def test_a_figure_with_such_a_title_is_saved_in_every_format(one_seed: Any, tmp_path: Path) -> None:
    paths = save(pareto(one_seed.frame, titled(WHOLE, one_seed)[0]), tmp_path / "pareto")
    assert all(path.stat().st_size for path in paths)


@pytest.mark.parametrize("title", TITLES)
def test_the_report_prints_the_title(title: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    title = title.replace("SECRET", str(tmp_path / "secret"))
    run = {"Models": escape_rst(f"{title} (hub)"), "Tasks": escape_rst(title)}
    findings = [escape_rst(f"{title}: PATCH at 45 %."), escape_rst("The second.")]
    snakemake = SimpleNamespace(config={"experiment": "demo", "run": run, "findings": findings})
    text = (ROOT / "workflow/report/overview.rst").read_text()
    sections = ("Tables", "Figures", "Explore", "Plan and cost", "Environment")
    links = "\n\n" + "\n".join(f".. _{name}: x" for name in sections)
    # Snakemake appends the links to the template, too.
    page = rst(Environment(trim_blocks=True, lstrip_blocks=True).from_string(text + links).render(snakemake=snakemake))
    assert f"Models: {title} (hub)." in page.text and f"Tasks: {title}." in page.text
    assert f"{title}: PATCH at 45 %." in page.text and page.text.index("The second.") < page.text.index("arXiv")
    assert SECRET not in page.text and not page.tags & {"script", "img", "pre"}


@pytest.mark.parametrize("path", sorted((ROOT / "workflow/report").glob("*.rst")), ids=lambda path: path.stem)
def test_captions_hold_nothing_of_the_configuration_but_names(path: Path) -> None:
    """Names need no escaping: they consist of letters, digits, dots, dashes and underscores."""
    held = set(re.findall(r"snakemake\.([\w.]+)", path.read_text()))
    names = {
        "config.experiment",
        "wildcards.model",
        "wildcards.timed",
        "wildcards.table",
        "config.run.items",
        "config.findings",
    }
    assert held <= names
