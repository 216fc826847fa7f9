"""Table 1 as Markdown, LaTeX, HTML and plain text."""

import dataclasses
from collections.abc import Callable, Sequence

from clipbias.report import page
from clipbias.report.cells import MISSING, Entry, Table
from clipbias.report.summary import Summary, summarize
from clipbias.report.tables import failure_line, tables
from clipbias.terminal import printable

__all__ = [
    "html_table",
    "markdown_table",
    "plain_table",
    "summarize",
    "to_html",
    "to_latex",
    "to_markdown",
    "to_text",
]

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # after a row's end a bare bracket would be an argument
    "]": "{]}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
}
_TIGHT = (r"\setlength{\tabcolsep}{2pt}",)
_EMPTY = "There are no results yet."


def to_markdown(summary: Summary) -> str:
    """All tables in GitHub's Markdown."""
    parts = [markdown_table(table) for table in tables(summary)]
    if summary.failures:
        lines = [f"- {_markdown_text(failure_line(failure))}" for failure in summary.failures]
        parts.append("\n".join(["### Failed runs", "", *lines]))
    return "\n\n".join(parts or [_EMPTY]) + "\n"


def markdown_table(table: Table) -> str:
    """One table in GitHub's Markdown, its title as heading and its caption below."""
    left = [index in {0, *table.words} for index in range(len(table.columns))]
    head = [
        "| " + " | ".join(map(_markdown_text, table.columns)) + " |",
        "|" + "".join(" :-- |" if words else " --: |" for words in left),
    ]
    rows = ["| " + " | ".join(map(_markdown_entry, row)) + " |" for row in table.rows]
    caption = ["", _markdown_text(table.caption)] if table.caption else []
    return "\n".join([f"### {_markdown_text(table.title)}", "", *head, *rows, *caption])


def to_latex(summary: Summary) -> str:
    """All tables as LaTeX `table` environments; the document needs the packages `booktabs` and `graphicx`."""
    parts = ["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."]
    for table in tables(summary):
        wide = len(table.columns) > 8  # eleven datasets: tight columns and small spreads keep the figures readable
        rows = [" & ".join(_latex_entry(entry, small=wide) for entry in row) + r" \\" for row in table.rows]
        body = [
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            r"\begin{tabular}{l" + "r" * (len(table.columns) - 1) + "}",
            r"\toprule",
            " & ".join(map(_latex_text, table.columns)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
        ]
        caption = rf"\caption{{\textbf{{{_latex_text(table.title)}.}} {_latex_text(table.caption)}}}"
        parts.append("\n".join([r"\begin{table}[t]", r"\centering", *_TIGHT * wide, *body, caption, r"\end{table}"]))
    if summary.failures:
        lines = [rf"\item {_latex_text(failure_line(failure))}" for failure in summary.failures]
        parts.append("\n".join(["Failed runs:", r"\begin{itemize}", *lines, r"\end{itemize}"]))
    if not summary.methods:
        parts.append(_EMPTY)
    return "\n\n".join(parts) + "\n"


def to_html(summary: Summary, *, title: str = "Table 1", figure_svg: str | None = None) -> str:
    """One self-contained page with all tables.

    Args:
      summary: what to show.
      title: of the page.
      figure_svg: an SVG picture to show above the tables, for example `page.svg_text(accuracy_figure(summary))`.
    """
    parts = [f"<h1>{page.escape(title)}</h1>"]
    if figure_svg is not None:
        parts.append(page.figure(page.svg_image(figure_svg, alternative="Accuracy against shots."), caption=""))
    parts.extend(html_table(table) for table in tables(summary))
    if not summary.methods:
        parts.append(f"<p>{_EMPTY}</p>")
    if summary.failures:
        lines = "".join(f"<li>{page.escape(failure_line(failure))}</li>" for failure in summary.failures)
        parts.append(f'<h2>Failed runs</h2><ul class="failed">{lines}</ul>')
    return page.document(title, "\n".join(parts))


def to_text(summary: Summary) -> str:
    """All tables in aligned plain text for a terminal; `*` marks the best of a column, `'` the second best."""
    made = tables(summary)
    parts = [plain_table(table) for table in made]
    if any(entry.rank for table in made for row in table.rows for entry in row):
        parts.append("* best of the column, ' second best; ± is the sample standard deviation over seeds.")
    if summary.failures:
        parts.append(
            "\n".join(["Failed runs", *(f"  {printable(failure_line(failure))}" for failure in summary.failures)])
        )
    return "\n\n".join(parts or [_EMPTY]) + "\n"


def html_table(table: Table) -> str:
    """One table with its title as heading and its caption below, as an HTML fragment."""
    head = "".join(f'<th scope="col">{page.escape(column)}</th>' for column in table.columns)
    rows = "\n".join(
        "<tr>" + f'<th scope="row">{_html_entry(row[0])}</th>' + "".join(map(_html_cell, row[1:])) + "</tr>"
        for row in table.rows
    )
    many = ' class="many"' if len(table.columns) > 8 else ""
    return (
        f'<section><h2>{page.escape(table.title)}</h2>\n<div class="wide"><table{many}>\n'
        f"<thead><tr>{head}</tr></thead>\n"
        f'<tbody>\n{rows}\n</tbody></table></div>\n<p class="caption">{page.escape(table.caption)}</p></section>'
    )


def _html_cell(entry: Entry) -> str:
    kinds = [name for name, is_so in (("failed", entry.failed), ("published", entry.published)) if is_so]
    attribute = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<td{attribute}>{_html_entry(entry)}</td>"


def _html_entry(entry: Entry) -> str:
    text = page.escape(entry.text)
    text = {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(entry.rank, text)
    spread = f' <span class="spread">{page.escape(entry.spread)}</span>' if entry.spread else ""
    note = f' <span class="note">({page.escape(entry.note)})</span>' if entry.note else ""
    return text + spread + note


def _markdown_text(text: str) -> str:
    text = printable(text)
    for letter in "\\|*_`<>[]":
        text = text.replace(letter, "\\" + letter)
    return text


def _markdown_entry(entry: Entry) -> str:
    text = _markdown_text(entry.text)
    text = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(entry.rank, text)
    return _joined(f"*{text}*" if entry.published and entry.text != MISSING else text, entry, _markdown_text)


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in printable(text))


def _latex_entry(entry: Entry, *, small: bool) -> str:
    text = _latex_text(entry.text)
    text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(entry.rank, text)
    text = rf"\textit{{{text}}}" if entry.published else text
    if small and entry.spread:
        text, entry = (
            rf"{text}{{\tiny\,{_latex_text(entry.spread).replace(' ', '')}}}",
            dataclasses.replace(entry, spread=""),
        )
    return _joined(text, entry, _latex_text)


def plain_table(table: Table) -> str:
    """One table in aligned plain text under its title, without its caption."""
    columns = [
        _plain_column(head, entries, left=index in {0, *table.words})
        for index, (head, entries) in enumerate(zip(table.columns, zip(*table.rows, strict=True), strict=True))
    ]
    lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    rule = "-" * max(map(len, lines))
    return "\n".join([table.title, rule, lines[0], rule, *lines[1:], rule])


def _plain_column(head: str, entries: Sequence[Entry], *, left: bool) -> list[str]:
    """A column's texts at one width: numbers end in one place, and so do the spreads behind them."""
    head, texts = printable(head), [printable(entry.text) for entry in entries]
    if not left:
        numbers = [entry.text + {1: "*", 2: "'"}.get(entry.rank, " ") for entry in entries]
        behind = [_joined("", entry, str) for entry in entries]
        widths = max(map(len, numbers)), max(map(len, behind))
        texts = [
            f"{number.rjust(widths[0])} {rest.ljust(widths[1])}" for number, rest in zip(numbers, behind, strict=True)
        ]
    width = max(map(len, [head, *texts]))
    return [text.ljust(width) if left else text.rjust(width) for text in (head, *texts)]


def _joined(text: str, entry: Entry, escaped: Callable[[str], str]) -> str:
    return " ".join(filter(None, [text, escaped(entry.spread), f"({escaped(entry.note)})" if entry.note else ""]))
