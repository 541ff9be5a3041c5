"""Settings of the book: ``make docs`` builds it by Sphinx, ``make lint`` with every warning as an error.

The pages are plain Markdown, and read well without the book. So no page lists others in words of Sphinx: the
order of the book is that of the links in ``docs/index.md``, chapter by chapter. The source folder is the root
of the repository, so that a link leads to the same file in the book as on a code host.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from sphinx.application import Sphinx

ROOT: Final = Path(__file__).parents[1]

project = "Tidemark"
release = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md"]
# Folders without pages are not searched: an installation has thousands of files.
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "docs"]

# Anchors are those of a code host. A link to an anchor that is not there is a warning.
myst_heading_anchors = 6

html_theme = "furo"
html_title = f"Tidemark {release}"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

#: Pages whose links order the book, those in lists and tables, and the folder whose pages they order.
_CONTENTS: Final = {
    "docs/index": "",
    "docs/architecture": "docs/architecture/",
    "docs/adr/README": "docs/adr/",
}
_CHAPTER: Final = re.compile(r"^## (.+)$", re.MULTILINE)
_LINK: Final = re.compile(r"^(?:- |\| ).*?\]\((?!\w+:)([^)#\s]+)\.md[)#]", re.MULTILINE)
#: The book begins at docs/index.html, as its page does.
_FRONT: Final = '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">\n'


def _add_order(_: Sphinx, docname: str, source: list[str]) -> None:
    """Tell Sphinx the order of the pages to which a page of contents links."""
    if docname in _CONTENTS:
        source[0] += "".join(_toctrees(docname, source[0]))


def _toctrees(docname: str, text: str) -> Iterable[str]:
    _, *chapters = _CHAPTER.split(text)
    listed = {docname}
    folder_of_pages = _CONTENTS[docname]
    for caption, body in zip(chapters[::2], chapters[1::2], strict=True):
        folder = posixpath.dirname(docname)
        linked = [posixpath.normpath(posixpath.join(folder, one)) for one in _LINK.findall(body)]
        pages = [
            one for one in dict.fromkeys(linked) if one not in listed and one.startswith(folder_of_pages)
        ]
        listed.update(pages)
        entries = "".join(f"/{one}\n" for one in pages)
        if pages:
            yield f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n{entries}```\n"


def _write_front(app: Sphinx, failure: Exception | None) -> None:
    if failure is None and app.builder.format == "html":
        Path(app.outdir, "index.html").write_text(_FRONT, "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the steps of our own to a build."""
    app.connect("source-read", _add_order)
    app.connect("build-finished", _write_front)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
