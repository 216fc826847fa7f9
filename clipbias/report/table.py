"""Tables: strings with a title, a caption and a note, rendered by pandas in four formats.

Names in a table come from users. Each format escapes them, so that a line end, a bar or a bracket in a name makes no
new row, column or argument.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Sequence
from html import escape
from typing import Any

import pandas as pd
from markupsafe import Markup

from clipbias.terminal import printable

MISSING = "–"
TABLE_FORMATS = ("text", "markdown", "latex", "html")
# With more columns a LaTeX table is scaled to the width of the page.
_MOST_COLUMNS = 8

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "[": "{[}",  # after a row's end a bare bracket would be an argument
        "]": "{]}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "√": r"$\surd$",
        "−": "$-$",
        "–": "--",
    }
)
_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\|*_`<>[]"})


@dataclasses.dataclass(frozen=True)
class Table:
    title: str  # heading, and label in LaTeX
    caption: str  # a sentence that defines the numbers and ±
    columns: Sequence[str]  # heads
    body: Sequence[Sequence[str]]  # the first string names the row
    words: Collection[int] = ()  # numbers of the columns of words, left-aligned, like the first column
    note: str = ""  # further facts, in small letters below
    bold: Collection[tuple[int, int]] = ()  # places (row, column)

    @classmethod
    def of(cls, frame: pd.DataFrame, title: str, caption: str, **others: Any) -> "Table":
        """Makes a table of a data frame of strings whose index names methods; `others` are fields."""
        rows = [(str(name), *texts) for name, texts in zip(frame.index, frame.to_numpy().tolist(), strict=True)]
        return cls(title, caption, ("Method", *map(str, frame.columns)), rows, **others)

    @property
    def html(self) -> Markup:
        """HTML without the title, for a page with headings of its own."""
        return Markup(_html(self))


def render(table: Table, form: str) -> str:
    """Renders a table as plain text, GitHub's Markdown, LaTeX (`booktabs`; `graphicx` for wide tables), or HTML."""
    return {"text": _text, "markdown": _markdown, "latex": _latex, "html": _html}[form](table)


def _marked(table: Table, escaped: Callable[[str], str], bold: str) -> pd.DataFrame:
    rows = [[escaped(str(text)) for text in row] for row in table.body]
    frame = pd.DataFrame(rows, columns=[escaped(str(name)) for name in table.columns], dtype=object)
    for row, column in table.bold:
        frame.iat[row, column] = bold.format(frame.iat[row, column])
    return frame


def _aligned(table: Table) -> list[str]:
    return ["left" if column == 0 or column in table.words else "right" for column in range(len(table.columns))]


def _tabulated(frame: pd.DataFrame, table: Table, form: str) -> str:
    # Names such as 1e3 would be parsed as numbers.
    return frame.to_markdown(
        index=False, tablefmt=form, colalign=_aligned(table), disable_numparse=True, preserve_whitespace=True
    )


def _text(table: Table) -> str:
    frame = _marked(table, printable, "{}*")
    for column in range(1, len(table.columns)):  # aligns numbers with and without a star
        if column not in table.words and any(place[1] == column for place in table.bold):
            frame.isetitem(column, [text if text.endswith("*") else f"{text} " for text in frame.iloc[:, column]])
    # Cells are padded to their column: no blanks at line ends.
    body = "\n".join(line.rstrip() for line in _tabulated(frame, table, "simple").split("\n"))
    return "\n".join(filter(None, [printable(table.title), body]))


def markdown_text(text: str) -> str:
    return printable(text).translate(_MARKDOWN)


def _markdown(table: Table) -> str:
    body = _tabulated(_marked(table, markdown_text, "**{}**"), table, "pipe")
    below = " ".join(filter(None, [table.caption, table.note]))
    heading = f"### {markdown_text(table.title)}" if table.title else ""
    return "\n\n".join(filter(None, [heading, body, markdown_text(below)]))


def latex_text(text: str) -> str:
    return printable(text).translate(_LATEX)


def _latex(table: Table) -> str:
    letters = "".join(side[0] for side in _aligned(table))
    # Letters and hyphens alone: LaTeX labels hold no mark-up.
    label = re.sub(r"\W+", "-", table.title.lower()).strip("-")
    body = _marked(table, latex_text, r"\textbf{{{}}}").to_latex(index=False, escape=False, column_format=letters)
    body = body.strip()
    if len(table.columns) > _MOST_COLUMNS:
        body = f"\\resizebox{{\\textwidth}}{{!}}{{%\n{body}}}"
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_text(table.caption or table.title)}}}",
        rf"\label{{tab:{label}}}",
        body,
    ]
    if table.note:
        lines += ["", r"\smallskip", rf"\parbox{{\linewidth}}{{\footnotesize {latex_text(table.note)}}}"]
    return "\n".join([*lines, r"\end{table}"])


_JOINED = re.compile(r"(?<=\d) (?=%)|(?<=\d) (?=to [+−-]?\d[\d.]*\))|(?<=\d to) (?=[+−-]?\d[\d.]*\))")


def unbroken(text: str) -> str:
    """Keeps a number with its unit, and an interval, in a line of HTML."""
    return _JOINED.sub("\u00a0", text)


def _html(table: Table) -> str:
    def escaped(text: str) -> str:
        return unbroken(escape(printable(text)))

    frame = _marked(table, escaped, "<b>{}</b>")
    heads = list(frame.columns)
    for column in set(table.words) - {0}:
        frame.isetitem(column, [f'<div class="words">{text}</div>' for text in frame.iloc[:, column]])
        heads[column] = f'<div class="words">{heads[column]}</div>'
    # The first column heads the rows.
    frame = frame.iloc[:, 1:].set_axis(frame.iloc[:, 0].to_numpy(), axis=0)
    # The name of the index is the head of its column: pandas then writes one row of heads.
    frame.columns = pd.Index(heads[1:], name=heads[0])
    with pd.option_context("display.max_colwidth", None):
        body = frame.to_html(escape=False, border=0, classes="many" if len(table.columns) > _MOST_COLUMNS else "")
    # The page's own style aligns columns.
    body = body.replace(' style="text-align: right;"', "").replace(' class="dataframe"', "")
    below = " ".join(filter(None, [table.caption, table.note]))
    return f'<div class="wide">{body}</div>' + (f'\n<p class="caption">{escaped(below)}</p>' if below else "")
