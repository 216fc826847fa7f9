"""The one type of all tables, and how it reads as plain text, Markdown and LaTeX; `templates/parts.html.j2` has HTML.

Names in a table come from users. Each rendering escapes them, so that a line end, a bar or a bracket in a name makes no
new row, column or argument.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence

from clipbias.terminal import printable

MISSING = "–"

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
    "√": r"$\surd$",
    "−": "$-$",
    "–": "--",
}
_TIGHT = r"\setlength{\tabcolsep}{2pt}"


@dataclasses.dataclass(frozen=True)
class TableCell:
    """One cell.

    Attributes:
      text: the number or the words.
      spread: "± 0.8", or nothing.
      note: a remark in brackets, such as "n = 2".
      rank: 1 for the best of a column, 2 for the second best, else 0.
      failed: some or all of its runs failed.
      published: it comes from a paper.
      heading: it names the rows below it, and the rest of its row is empty.
    """

    text: str
    spread: str = ""
    note: str = ""
    rank: int = 0
    failed: bool = False
    published: bool = False
    heading: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, a caption of whole sentences, column heads, and rows whose first cell names the row.

    The columns whose numbers are in `words` hold words and are left-aligned, as the first always is.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    words: Collection[int] = ()

    @property
    def is_wide(self) -> bool:
        """Whether it has so many columns (of eleven datasets, say) that they need tight spacing to fit on a page."""
        return len(self.columns) > 8


def cells(*texts: str) -> tuple[TableCell, ...]:
    """A row of plain texts."""
    return tuple(map(TableCell, texts))


def ranked(rows: Iterable[Sequence[TableCell]], *, skip_last: int = 0) -> tuple[tuple[TableCell, ...], ...]:
    """Marks the best and second best number of every column; equal as shown is equal, so both are marked."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for column in columns[1 : len(columns) - skip_last]:
        numbers = sorted({float(cell.text) for cell in column if _is_number(cell.text)}, reverse=True)
        if len(numbers) < 2:
            continue
        for index, cell in enumerate(column):
            if _is_number(cell.text) and float(cell.text) in numbers[:2]:
                column[index] = dataclasses.replace(cell, rank=1 + numbers.index(float(cell.text)))
    return tuple(zip(*columns, strict=True))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def text_table(table: Table) -> str:
    """The table for a terminal, under its title and without its caption; `*` marks the best, `'` the second best."""
    import tabulate

    # Numbers end in one place, and what stands behind them begins in one.
    columns: list[list[str]] = []
    for index, column in enumerate(zip(*table.rows, strict=True)):
        texts = [printable(cell.text) for cell in column]
        if index and index not in table.words:
            numbers = [text + {1: "*", 2: "'"}.get(cell.rank, " ") for text, cell in zip(texts, column, strict=True)]
            behind = [_joined("", cell, str) for cell in column]
            widths = max(map(len, numbers)), max(map(len, behind))
            texts = [f"{a:>{widths[0]}} {b:<{widths[1]}}" for a, b in zip(numbers, behind, strict=True)]
            used = max(len(text.rstrip()) for text in texts)
            texts = [text[:used] for text in texts]
        columns.append(texts)
    rule = tabulate.Line("", "-", "  ", "")
    row = tabulate.DataRow("", "  ", "")
    layout = tabulate.TableFormat(rule, rule, None, rule, row, row, 0, None)
    return f"{table.title}\n{_tabulated(table, map(printable, table.columns), zip(*columns, strict=True), layout)}"


def markdown_table(table: Table) -> str:
    """The table in GitHub's Markdown, its title as heading and its caption below."""
    heads = map(markdown_text, table.columns)
    body = _tabulated(table, heads, (map(_markdown_cell, row) for row in table.rows), "pipe")
    return "\n\n".join(filter(None, [f"### {markdown_text(table.title)}", body, markdown_text(table.caption)]))


def latex_table(table: Table) -> str:
    """The table as a LaTeX `table` environment; the document needs the packages `booktabs` and `graphicx`."""
    import tabulate

    row = tabulate.DataRow("", " & ", r" \\")
    layout = tabulate.TableFormat(None, tabulate.Line(r"\midrule", "", "", ""), None, None, row, row, 0, None)
    rows = ([_latex_cell(cell, small=table.is_wide) for cell in row] for row in table.rows)
    letters = "".join("l" if index in {0, *table.words} else "r" for index in range(len(table.columns)))
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        *[_TIGHT] * table.is_wide,
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{letters}}}",
        r"\toprule",
        _tabulated(table, map(latex_text, table.columns), rows, layout),
        r"\bottomrule",
        r"\end{tabular}}",
        rf"\caption{{\textbf{{{latex_text(table.title)}.}} {latex_text(table.caption)}}}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _tabulated(table: Table, heads: Iterable[str], rows: Iterable[Iterable[str]], layout: object) -> str:
    import tabulate

    return tabulate.tabulate(
        [list(row) for row in rows],
        list(heads),
        tablefmt=layout,  # type: ignore[arg-type]  # the stubs know names only
        colalign=["left" if index in {0, *table.words} else "right" for index in range(len(table.columns))],
        disable_numparse=True,
        preserve_whitespace=True,
    )


def markdown_text(text: str) -> str:
    """Any text as Markdown shows it letter by letter."""
    text = printable(text)
    for letter in "\\|*_`<>[]":
        text = text.replace(letter, "\\" + letter)
    return text


def _markdown_cell(cell: TableCell) -> str:
    text = markdown_text(cell.text)
    text = f"**{text}**" if cell.heading else {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(cell.rank, text)
    return _joined(f"*{text}*" if cell.published and cell.text != MISSING else text, cell, markdown_text)


def latex_text(text: str) -> str:
    """Any text as LaTeX shows it letter by letter."""
    return "".join(_LATEX.get(letter, letter) for letter in printable(text))


def _latex_cell(cell: TableCell, *, small: bool) -> str:
    text = latex_text(cell.text)
    text = rf"\textbf{{{text}}}" if cell.heading else text
    text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.rank, text)
    text = rf"\textit{{{text}}}" if cell.published else text
    if small and cell.spread:  # small spreads keep the numbers of a wide table readable
        text += rf"{{\tiny\,{latex_text(cell.spread).replace(' ', '')}}}"
        cell = dataclasses.replace(cell, spread="")
    return _joined(text, cell, latex_text)


def _joined(text: str, cell: TableCell, escaped: Callable[[str], str]) -> str:
    return " ".join(filter(None, [text, escaped(cell.spread), f"({escaped(cell.note)})" if cell.note else ""]))
