"""Sphinx extension for pages that code hosts show as well, and for docstrings."""

from __future__ import annotations

from pathlib import Path

import mermaidx
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

CONTENTS = Path(__file__).with_name("contents.md")


class Mermaid(Directive):
    """Diagram that is drawn when the site is built, so that a page needs no script."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the diagram as SVG."""
        svg = mermaidx.render("\n".join(self.content), theme="neutral").svg()
        return [nodes.raw("", f'<div class="diagram">{svg}</div>', format="html")]


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the contents of the site to its first page, where a code host does not show them."""
    if page == app.config.root_doc:
        app.env.note_dependency(str(CONTENTS))
        source[0] += CONTENTS.read_text(encoding="utf-8")


def edit_links(app: Sphinx, doctree: nodes.document) -> None:
    """Show the title of a page or section instead of the name of its file; unlink folders, which have no page."""
    page = Path(app.env.doc2path(app.env.docname))
    for link in list(doctree.findall(pending_xref)):
        if (page.parent / link["reftarget"]).is_dir():
            link.replace_self(link.children)
        elif link.astext().endswith(".md"):
            link["refexplicit"] = False


def mark_returns(app: Sphinx, kind: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Begin each description of a returned value with a colon: napoleon takes the words before a colon for a type."""
    for index, line in enumerate(lines[:-1]):
        if line.strip() in ("Returns:", "Yields:"):
            first = lines[index + 1]
            lines[index + 1] = first[: len(first) - len(first.lstrip())] + ": " + first.lstrip()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the handlers."""
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", add_contents)
    app.connect("doctree-read", edit_links)
    app.connect("autodoc-process-docstring", mark_returns, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
