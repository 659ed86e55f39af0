"""Text as each format prints it literally: one function for each, for every text that a table or a page shows.

Figures need none: their style turns off the mathematics in texts (`text.parse_math`).
"""

from __future__ import annotations

import re
from html import escape as escape_html

__all__ = ["escape_html", "escape_label", "escape_markdown", "escape_rst", "escape_tex"]

# Signs of Markdown and of GitHub, and what makes a link of an address.
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>|~&$#@]|(?<=:)/(?=/)|(?<=www)\.")
# What makes a list or a heading at the beginning of a line.
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
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "Δ": r"$\Delta$",
    "−": "$-$",
    "–": "--",
}
# Two hyphens would be a dash; at the beginning of a row, a bracket or a star is an option of the row before.
_TEX_SIGNS = re.compile(rf"(?P<hyphen>-(?=-))|(?P<option>^[\[*])|[{re.escape(''.join(_TEX))}]")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
# Keeps apart what is read as one, and is not seen.
WORD_JOINER = "\u2060"


def escape_markdown(text: str) -> str:
    """Return text as GitHub's Markdown prints it literally, on one line."""
    started = _MARKDOWN_START.sub(r"\1\0\2", _line(text))
    return _MARKDOWN.sub(r"\\\g<0>", started).replace("\0", "\\")


def escape_tex(text: str) -> str:
    """Return text as LaTeX prints it literally, on one line; the signs of the tables become mathematics."""

    def sign(match: re.Match[str]) -> str:
        if match["hyphen"]:
            return "-{}"
        return f"{{{match[0]}}}" if match["option"] else _TEX[match[0]]

    return _TEX_SIGNS.sub(sign, _line(text))


def escape_rst(text: str) -> str:
    """Return text as reStructuredText, the language of the report's captions, prints it literally, on one line."""
    return _PUNCTUATION.sub(r"\\\g<0>", _line(text))


def escape_label(text: str) -> str:
    """Return text as the label of a result in Snakemake's report.

    Snakemake writes labels into a script of the page, which a `</script>` in them would end, and puts values in the
    place of names in braces.
    """
    return re.sub(r"[<{]", rf"\g<0>{WORD_JOINER}", text)


def _line(text: str) -> str:
    return " ".join(text.split())
