"""Escaping functions for the text of tables and pages, one for each output format.

Figures need no escaping because their style disables mathematics in text (`text.parse_math`).
"""

from __future__ import annotations

import re
from html import escape as escape_html

__all__ = ["escape_html", "escape_label", "escape_markdown", "escape_rst", "escape_tex"]

# Special characters of Markdown and GitHub, and the parts of an address that trigger automatic links.
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>|~&$#@]|(?<=:)/(?=/)|(?<=www)\.")
# Characters that start a list or a heading at the beginning of a line.
_MARKDOWN_START = re.compile(r"^(\d*)([-+=](?=[\s=+-]|$)|(?<=\d)[.)](?=\s|$))")
_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\`{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "Δ": r"$\Delta$",
    "−": "$-$",
    "–": "--",
}
# Two hyphens form a dash. A bracket or star at the start of a row is parsed as an option of the previous row's `\\`.
_TEX_SIGNS = re.compile(rf"(?P<hyphen>-(?=-))|(?P<option>^[\[*])|[{re.escape(''.join(_TEX))}]")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
# Invisible character that breaks up a special sequence.
WORD_JOINER = "\u2060"


def escape_markdown(text: str) -> str:
    """Return text escaped for GitHub Markdown, on one line."""
    started = _MARKDOWN_START.sub(r"\1\0\2", _line(text))
    return _MARKDOWN.sub(r"\\\g<0>", started).replace("\0", "\\")


def escape_tex(text: str) -> str:
    """Return text escaped for LaTeX, on one line; symbols of the tables, such as ±, become mathematics."""

    def sign(match: re.Match[str]) -> str:
        if match["hyphen"]:
            return "-{}"
        return f"{{{match[0]}}}" if match["option"] else _TEX[match[0]]

    return _TEX_SIGNS.sub(sign, _line(text))


def escape_rst(text: str) -> str:
    """Return text escaped for reStructuredText, the format of the report's captions, on one line."""
    return _PUNCTUATION.sub(r"\\\g<0>", _line(text))


def escape_label(text: str) -> str:
    """Return text escaped for the label of a result in Snakemake's report.

    Snakemake writes labels into a script of the page, which a `</script>` in a label would end. It also replaces names
    in braces by values.
    """
    return re.sub(r"[<{]", rf"\g<0>{WORD_JOINER}", text)


def _line(text: str) -> str:
    return " ".join(text.split())
