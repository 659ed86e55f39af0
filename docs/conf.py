"""Configuration of the documentation site, which `make docs` builds.

The source folder of Sphinx is the repository, so that a link between two pages is the same on a code host.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs/_site")]

project = html_title = "PATCH"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_extension"]

root_doc = "README"
include_patterns = ["*.md", "*/README.md", "docs/**.md", "workflow/executor/*.md"]
# Folders that are not searched.
exclude_patterns = ["docs/_site", ".*", "build", "patch", "results", "tests", "work"]

# The names that code hosts give to headings are targets of links.
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

# A single backtick in a docstring is code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
napoleon_use_ivar = True

html_theme = "furo"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
templates_path = ["_site/templates"]
html_additional_pages = {"index": "start.html"}
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
