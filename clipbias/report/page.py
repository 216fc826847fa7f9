"""Self-contained HTML pages: no script, no network, every picture inlined, every text escaped."""

import base64
import html
from collections.abc import Collection, Sequence
from pathlib import Path

from clipbias.report.drawing import Drawing
from clipbias.terminal import printable

_STYLE = """
:root { color-scheme: light; --ink: #1d2330; --quiet: #5b6474; --line: #d9dde5; --paper: #ffffff; --wash: #f5f7fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .8rem; padding-top: .2rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
p { margin: .6rem 0; max-width: 46rem; }
a { color: #0b5fa5; }
.lead { font-size: 1.08rem; color: var(--quiet); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); }
thead th { border-bottom: 1px solid var(--ink); font-weight: 600; vertical-align: bottom; }
th, td { padding: .34rem .8rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 600; }
table.many { font-size: .72rem; }
table.many th, table.many td { padding: .34rem .3rem; }
table.many .spread { display: block; line-height: 1.1; }
td.words, th.words { text-align: left; white-space: normal; }
tbody tr:nth-child(even) { background: var(--wash); }
.spread { color: var(--quiet); font-size: .85em; }
.note { color: var(--quiet); font-size: .8em; }
td.failed { color: #a8323e; }
td.published { color: var(--quiet); font-style: italic; }
ul.failed { color: #a8323e; }
.caption, figcaption { color: var(--quiet); font-size: .9rem; max-width: 52rem; }
figure { margin: 1.6rem 0 2.2rem; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption b { color: var(--ink); }
nav { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .9rem 1.3rem;
  margin: 1.6rem 0; }
nav ol { margin: 0; padding-left: 1.3rem; columns: 2; column-gap: 2.5rem; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .9rem 1.1rem;
  overflow-x: auto; font-size: .82rem; line-height: 1.45; }
.conclusion { border-left: 4px solid #D55E00; background: var(--wash); padding: .7rem 1.1rem; max-width: 52rem; }
.files { white-space: nowrap; font-size: .85rem; }
@media (max-width: 44rem) { nav ol { columns: 1; } body { padding: 1.2rem .9rem 3rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } figure, section.keep { break-inside: avoid; }
  nav { break-after: page; } }
"""


def escape(text: object) -> str:
    """`text` with everything that HTML would read as markup, quotes included, made plain, and control characters, which
    HTML has not, as their escapes.
    """
    return html.escape(printable(text, keep="\n\t\u200c\u200d"), quote=True)


def document(title: str, body: str) -> str:
    """A whole page around a body that is already HTML; `title` is plain text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def svg_image(svg: str, *, alternative: str) -> str:
    """An SVG picture inlined as an image, so that its ids and styles cannot meet those of another."""
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<img alt="{escape(alternative)}" src="data:image/svg+xml;base64,{data}">'


def png_image(data: bytes, *, alternative: str, width: int | None = None) -> str:
    """A PNG picture inlined; `width` in CSS pixels keeps a high-resolution picture at its printed size."""
    size = f' width="{width}"' if width else ""
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(alternative)}"{size} src="data:image/png;base64,{encoded}">'


def figure(image: str, *, caption: str, identifier: str | None = None) -> str:
    """A picture with its caption, both already HTML."""
    attribute = f' id="{escape(identifier)}"' if identifier else ""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure{attribute}>{image}{below}</figure>"


def saved_figure(drawing: Drawing, folder: Path) -> str:
    """Writes a drawing's files and returns it as HTML: the PNG inlined, its caption, and links to the files."""
    pdf, png, numbers = drawing.save(folder)
    width = round(96 * drawing.figure.get_size_inches()[0] * 1.15)
    image = png_image(png.read_bytes(), alternative=drawing.title, width=width)
    links = " · ".join(
        f'<a href="{escape(folder.name)}/{escape(path.name)}">{kind}</a>'
        for kind, path in (("PDF", pdf), ("PNG", png), ("CSV", numbers))
    )
    paper = drawing.name.partition("_")[0].removeprefix("fig")
    number = f"Fig. {paper}. " if paper.isdigit() else ""
    caption = f'<b>{number}{escape(drawing.title)}.</b> {escape(drawing.caption)} <span class="files">{links}</span>'
    return figure(image, caption=caption)


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", words: Collection[int] = ()
) -> str:
    """A table of plain texts; the columns numbered in `words` hold words and are set to the left."""
    head = "".join(f'<th scope="col"{_words(index in words)}>{escape(text)}</th>' for index, text in enumerate(heads))
    body = "\n".join(
        "<tr>"
        + f'<th scope="row">{escape(first)}</th>'
        + "".join(f"<td{_words(index in words)}>{escape(text)}</td>" for index, text in enumerate(rest, start=1))
        + "</tr>"
        for first, *rest in rows
    )
    below = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n{below}'
    )


def _words(is_words: bool) -> str:
    return ' class="words"' if is_words else ""
