"""Configuration of the site: ``tox -e docs`` builds it; warnings are errors.

Pages are Markdown, because they are also read in the repository; the reference is generated from the docstrings, which
are reStructuredText.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from ort_rknn._version import package_version

project = "ort-rknn"
version = release = package_version

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"ort-rknn {release}"
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

#: Pages outside docs/ that have a page here, by their names.
_OUTSIDE = {"README": "index", "CHANGELOG": "changelog", "CONTRIBUTING": "contributing", "SECURITY": "security"}


def _stay_in_the_site(app: Sphinx, document: str, source: list[str]) -> None:
    """Links to pages outside docs/ lead to the page that includes them."""
    up = "../" * document.count("/")
    source[0] = re.sub(
        r"\]\((?:\.\./)+(\w+)\.md",
        lambda found: f"]({up}{_OUTSIDE[found[1]]}.md" if found[1] in _OUTSIDE else found[0],
        source[0],
    )


def _includes_too(app: Sphinx, relative: object, parent: str, source: list[str]) -> None:
    source[0] = re.sub(
        r"\]\((?:docs/)?(\w+)\.md",
        lambda found: f"](docs/{_OUTSIDE[found[1]]}.md" if found[1] in _OUTSIDE else found[0],
        source[0],
    )


def setup(app: Sphinx) -> None:
    app.connect("source-read", _stay_in_the_site)
    app.connect("include-read", _includes_too)
