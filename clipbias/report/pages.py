"""Figures with captions and numbers, and the self-contained HTML pages that show them, with all text escaped."""

import base64
import dataclasses
import functools
import importlib.resources
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from clipbias.io import atomic_path
from clipbias.report import style
from clipbias.report.table import Table, unbroken
from clipbias.terminal import printable


@functools.cache
def captions() -> dict[str, dict[str, str]]:
    """Returns templates of title and caption by kind of figure or table."""
    return tomllib.loads((importlib.resources.files("clipbias.report") / "templates/captions.toml").read_text("utf-8"))


def words_of(kind: str, **facts: Any) -> tuple[str, str]:
    """Returns the title and the caption of a kind, with `facts` in their braces."""
    title, caption = (captions()[kind][part].format(**facts) for part in ("title", "caption"))
    # Captions have line ends in their file, and flow on the page.
    return title, " ".join(caption.split())


@dataclasses.dataclass(frozen=True)
class CaptionedFigure:
    """Figure with its caption and its numbers, one observation per row; `name` is of its files."""

    name: str
    title: str
    caption: str
    figure: style.Figure
    numbers: pd.DataFrame

    def save(self, folder: Path) -> tuple[Path, Path, Path]:
        """Writes NAME.pdf, NAME.png and NAME.csv and returns their paths. Raises `ClipbiasError` if it cannot."""
        pdf, png = style.save_figure(self.figure, folder / self.name)
        write_csv(table := folder / f"{self.name}.csv", self.numbers)
        return pdf, png, table


def captioned(
    kind: str, figure: style.Figure, numbers: pd.DataFrame, *, name: str = "", **facts: Any
) -> CaptionedFigure:
    """The figure with the title and the caption of its kind. Its files are named by its kind, or by `name`."""
    return CaptionedFigure(name or kind, *words_of(kind, **facts), figure, numbers)


def file_name(text: str) -> str:
    """Letters, digits, dots and underscores only: `demo/digits` becomes `demo_digits`."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.") or "unnamed"


def write_csv(path: Path, numbers: pd.DataFrame) -> None:
    """Writes a table atomically. Numbers keep all their digits; the cell of one that is not finite is left empty."""
    # Infinity is a number in no spreadsheet.
    with atomic_path(path) as temporary:
        numbers.replace([np.inf, -np.inf], np.nan).to_csv(temporary, index=False, lineterminator="\n")


class Picture(NamedTuple):
    title: str
    caption: str
    number: str  # in the paper, `Fig. 3. `, or ""
    png: bytes
    width: int  # in CSS pixels, so that a high-resolution picture keeps its printed size
    files: tuple[tuple[str, str], ...]  # links: format of each file and its path relative to the page


@dataclasses.dataclass(frozen=True)
class PageSection:
    """Part of a page that a reader unfolds, with its content in the order of the attributes."""

    title: str
    identifier: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table | None] = ()
    groups: Sequence[tuple[str, Sequence[str]]] = ()  # headings with their sentences
    remarks: Sequence[str] = ()
    explorer: Mapping[str, Any] | None = None
    code: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.pictures or any(self.tables) or self.groups or self.remarks or self.explorer or self.code)


def save_pictures(figures: Iterable[CaptionedFigure | Sequence[CaptionedFigure] | None], folder: Path) -> list[Picture]:
    """Writes the files of all figures to a folder beside the page. Raises `ClipbiasError` if it cannot."""
    # A drawing returns a figure, several, or nothing.
    listed = ([each] if isinstance(each, CaptionedFigure) else each or [] for each in figures)
    pictures = []
    for figure in itertools.chain.from_iterable(listed):
        paths = figure.save(folder)
        # Names such as `fig3_vision_relevancy` carry the number of the paper's figure.
        paper = figure.name.partition("_")[0].removeprefix("fig")
        number = f"Fig. {paper}. " if paper.isdigit() else ""
        # 96 CSS pixels are an inch; a little larger than in print, since screens are read from farther away.
        width = round(96 * figure.figure.get_size_inches()[0] * 1.15)
        files = tuple((path.suffix[1:].upper(), f"{folder.name}/{path.name}") for path in paths)
        pictures.append(Picture(figure.title, figure.caption, number, paths[1].read_bytes(), width, files))
    return pictures


def render(template: str, *, title: str, **content: Any) -> str:
    """Renders a page from `templates/TEMPLATE.html.j2`."""
    return _environment().get_template(f"{template}.html.j2").render(title=title, **content)


def data_uri(data: bytes | str, kind: str) -> str:
    # Inline, the ids and styles of one SVG would meet those of another.
    encoded = base64.b64encode(data.encode("utf-8") if isinstance(data, str) else data).decode("ascii")
    return f"data:{kind};base64,{encoded}"


@functools.cache
def _environment() -> jinja2.Environment:
    def displayable(value: Any) -> Any:
        # Macros return HTML. HTML has no control characters, so they are shown as their escapes.
        return value if hasattr(value, "__html__") else unbroken(printable(value, keep="\n\t\u200c\u200d"))

    # Names come from users: all is escaped. A misspelt name in a template raises, where it would leave an empty place.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipbias.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=displayable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    return environment
