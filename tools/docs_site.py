"""Hooks of MkDocs, which makes a site of `docs/` (`mkdocs.yml`): pages that lie elsewhere in the repository.

The README is its first page, the Python reference has the public names of all packages, and each source file that a
page links to is a page of its own, so that the site needs no other host. `mkdocs build --strict` fails where a link
leads nowhere, or a page stands in no menu.
"""

import importlib
import pkgutil
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import clipbias
from clipbias.tuning import METHODS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = "index.md"
SOURCE = "source"
REFERENCE = """# Python reference

Letters in shapes: `B` images, `C` classes, `N` tokens, `M` patches, `T`/`V` text and vision prompts, `L` layers, `H`
heads, `K` width of a head, `D` width, `d` joint width.
"""
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages that do not lie in `docs/`."""
    pages = {README: (ROOT / "README.md").read_text(encoding="utf-8"), "api.md": reference()}
    written = {
        file.src_uri: file.content_string for file in files.documentation_pages() if file.src_uri.endswith(".md")
    }
    for name, text in {**pages, **written}.items():
        for link, _ in LINK.findall(text):
            target = (_folder(name) / link).resolve()
            if target.is_file() and _page_of(target).startswith(SOURCE):
                pages[_page_of(target)] = _listing(target)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Leads links to where the site has their files."""
    source = page.file.src_uri

    def lead(link: re.Match) -> str:
        target = (_folder(source) / link[1]).resolve()
        if source.startswith(SOURCE) or not target.is_file():
            return link[0]
        return f"]({posixpath.relpath(_page_of(target), posixpath.dirname(source) or '.')}{link[2] or ''})"

    return LINK.sub(lead, markdown)


def on_page_content(html: str, *, page: Any, config: Any, files: Files, **_: Any) -> str:
    """Leads links of notebooks, whose text MkDocs does not read, and offers to run them."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def lead(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link[1]))
        return f'href="{files.src_uris[target].url_relative_to(page.file)}"'

    html = re.sub(r'href="(?!https?:)([^"#]+\.md)"', lead, html)
    if repository := config.extra["repository"]:
        # Binder installs what `.binder` says.
        place = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/docs/{page.file.src_uri}"
        html = f'<p><a href="{place}">Run it in the browser</a></p>' + html
    return html


def public(package: str) -> dict[str, Any]:
    """The functions and classes that a package's `__all__` names, and the methods among those of `tuning`."""
    module = importlib.import_module(package)
    objects = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    if package == "clipbias.tuning":
        for kind, _ in METHODS.values():
            objects[f"{kind.__module__}.{kind.__name__}".removeprefix(f"{package}.")] = kind
    return {name: value for name, value in objects.items() if getattr(value, "__module__", "").startswith("clipbias.")}


def packages() -> list[str]:
    """`clipbias` and each of its packages."""
    return [
        "clipbias",
        *(f"clipbias.{module.name}" for module in pkgutil.iter_modules(clipbias.__path__) if module.ispkg),
    ]


def reference() -> str:
    """The page that mkdocstrings makes the Python reference of: every public object once, below its first package."""
    lines = [REFERENCE]
    known: list[object] = []
    for package in packages():
        lines.append(f"::: {package}\n    options: {{members: false}}\n")
        for name, value in public(package).items():
            if value not in known:
                known.append(value)
                lines.append(f"::: {package}.{name}\n    options: {{heading_level: 3}}\n")
    return "\n".join(lines)


def _folder(page: str) -> Path:
    """What the links of a page start from."""
    return ROOT if page == README else (DOCS / page).parent


def _page_of(path: Path) -> str:
    """Where the site has a file of the repository."""
    if path.is_relative_to(DOCS) and path.suffix != ".py":
        return path.relative_to(DOCS).as_posix()
    return README if path == ROOT / "README.md" else f"{SOURCE}/{path.relative_to(ROOT).as_posix()}.md"


def _listing(path: Path) -> str:
    """A page that shows a file."""
    name = path.relative_to(ROOT).as_posix()
    language = {".py": "python", ".md": "markdown"}.get(path.suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {name}\n\n~~~~{language}\n{path.read_text(encoding='utf-8')}\n~~~~\n"
