"""Hooks of MkDocs, which makes a site of `docs/` (`mkdocs.yml`): pages that lie elsewhere in the repository.

The README is its first page, the reference of the Python API is made from docstrings, a notebook is shown with what its
cells show, and each source file that a page links to is a page of its own, so that the site needs no other host.
`mkdocs build --strict` fails where a link leads nowhere, or a page stands in no menu.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from tools import notebook_page
from tools.make_api_reference import reference

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README, SOURCE = "index.md", "source"
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages that do not lie in `docs/`."""
    pages = {README: (ROOT / "README.md").read_text(encoding="utf-8"), "api.md": reference()}
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for path in sorted(DOCS.rglob("*.ipynb")):
        folder = path.parent.relative_to(DOCS).as_posix()
        pages[_page_of(path)], pictures = notebook_page.page(path.read_text(encoding="utf-8"), path.stem)
        for name, content in pictures.items():
            files.append(File.generated(config, f"{folder}/{name}", content=content))
    for name, text in {**pages, **written}.items():
        for link, _ in LINK.findall(text):
            target = (_folder(name) / link).resolve()
            if target.is_file() and not target.is_relative_to(DOCS):
                pages[_page_of(target)] = _listing(target)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Leads links to where the site has their files."""
    own = page.file.src_uri

    def lead(link: re.Match) -> str:
        target = (_folder(own) / link[1]).resolve()
        if own.startswith(SOURCE) or not target.is_file():
            return link[0]
        own_page = target.is_relative_to(DOCS) and target.suffix != ".ipynb"
        found = target.relative_to(DOCS).as_posix() if own_page else _page_of(target)
        return f"]({posixpath.relpath(found, posixpath.dirname(own) or '.')}{link[2] or ''})"

    return LINK.sub(lead, markdown)


def _folder(page: str) -> Path:
    """What the links of a page start from."""
    return ROOT if page == README else (DOCS / page).parent


def _page_of(path: Path) -> str:
    """Where the site has a file of the repository that is no page of `docs/` itself."""
    if path.suffix == ".ipynb":
        return path.relative_to(DOCS).with_suffix(".md").as_posix()
    return README if path == ROOT / "README.md" else f"{SOURCE}/{path.relative_to(ROOT).as_posix()}.md"


def _listing(path: Path) -> str:
    """A page that shows a file."""
    name = path.relative_to(ROOT).as_posix()
    language = {".py": "python", ".md": "markdown"}.get(path.suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {name}\n\n~~~~{language}\n{path.read_text(encoding='utf-8')}\n~~~~\n"
