"""Self-contained HTML pages from the templates beside this file: every picture is inlined and every text escaped."""

import base64
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from clipbias.io import write_text
from clipbias.report.captions import CaptionedFigure
from clipbias.report.table import Table
from clipbias.terminal import printable


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure whose files are written, as a page shows it.

    Attributes:
      number: the figure's number in the paper, `Fig. 3. `, or nothing.
      png: the bytes of the picture.
      width: in CSS pixels, which keeps a high-resolution picture at its printed size.
      files: what to link to: the kind of each file and its path relative to the page.
    """

    title: str
    caption: str
    number: str
    png: bytes
    width: int
    files: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page that a reader unfolds. Its content is shown in the order of the attributes.

    Attributes:
      groups: headings, each with its sentences.
      open: whether it is unfolded from the start.
    """

    title: str
    identifier: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    groups: Sequence[tuple[str, Sequence[str]]] = ()
    remarks: Sequence[str] = ()
    explorer: Mapping[str, Any] | None = None
    code: str = ""
    open: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.pictures or self.tables or self.groups or self.remarks or self.explorer or self.code)


def save_picture(figure: CaptionedFigure, folder: Path) -> Picture:
    """Writes a figure's files to a folder beside the page. Raises `ClipbiasError` where it cannot."""
    paths = figure.save(folder)
    paper = figure.name.partition("_")[0].removeprefix("fig")
    return Picture(
        title=figure.title,
        caption=figure.caption,
        number=f"Fig. {paper}. " if paper.isdigit() else "",
        png=paths[1].read_bytes(),
        width=round(96 * figure.figure.get_size_inches()[0] * 1.15),
        files=tuple((path.suffix[1:].upper(), f"{folder.name}/{path.name}") for path in paths),
    )


def render(template: str, *, title: str, **content: Any) -> str:
    """A page from `templates/TEMPLATE.html.j2`."""
    return _environment().get_template(f"{template}.html.j2").render(title=title, **content)


def write_page(path: Path, template: str, *, title: str, **content: Any) -> Path:
    """Writes a page atomically and returns its path. Raises `ClipbiasError` where it cannot."""
    write_text(path, render(template, title=title, **content))
    return path


# No line is broken between a number and its unit, or within an interval.
_JOINED = re.compile(r"(?<=\d) (?=%)|(?<=\d) (?=to [+−-]?\d[\d.]*\))|(?<=\d to) (?=[+−-]?\d[\d.]*\))")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clipbias.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_displayable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": _data_uri, "thousands": "{:,}".format}
    return environment


def _displayable(value: Any) -> Any:
    # What macros return is HTML already. HTML has no control characters, so they are shown as their escapes.
    if hasattr(value, "__html__"):
        return value
    return _JOINED.sub("\u00a0", printable(value, keep="\n\t\u200c\u200d"))


def _data_uri(data: bytes | str, kind: str) -> str:
    """A picture inlined as an image of its own, so that an SVG's ids and styles cannot meet those of another."""
    encoded = base64.b64encode(data.encode("utf-8") if isinstance(data, str) else data).decode("ascii")
    return f"data:{kind};base64,{encoded}"
