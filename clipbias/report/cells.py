"""A table's cells: what they say, which is best, how numbers are written."""

import dataclasses
from collections.abc import Iterable, Sequence

from clipbias.report.summary import Cell

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
      text: the number or the words.
      spread: "± 0.8", or nothing.
      note: a remark in brackets, such as "n = 2".
      rank: 1 for the best of a column, 2 for the second best, else 0.
      failed: some or all of its runs failed.
      published: it comes from a paper.
    """

    text: str
    spread: str = ""
    note: str = ""
    rank: int = 0
    failed: bool = False
    published: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, a caption of whole sentences, column heads, and rows whose first entry names the row.

    The columns numbered in `words` hold words and are set to the left, as the first always is.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    words: frozenset[int] = frozenset()


def accuracy_entry(cell: Cell | None, *, expected: int) -> Entry:
    """A cell of accuracies; `expected` seeds go without saying, any other number is noted."""
    if cell is None:
        return Entry(MISSING)
    if cell.mean is None:
        return Entry("failed", failed=True)
    spread = f"± {cell.spread:.1f}" if cell.spread is not None else ""
    count = len(cell.values)
    drawn = None not in cell.values  # zero-shot has no seeds to count
    note = f"n = {count}" if drawn and expected and count != expected else ""
    return Entry(f"{cell.mean:.1f}", spread, note, failed=bool(cell.failures))


def ranked(rows: Iterable[Sequence[Entry]], *, skip_last: int = 0) -> tuple[tuple[Entry, ...], ...]:
    """Marks the best and second best number of every column; equal as shown is equal, so both are marked."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for column in columns[1 : len(columns) - skip_last]:
        numbers = sorted({float(entry.text) for entry in column if _is_number(entry.text)}, reverse=True)
        if len(numbers) < 2:
            continue
        for index, entry in enumerate(column):
            if _is_number(entry.text) and float(entry.text) in numbers[:2]:
                column[index] = dataclasses.replace(entry, rank=1 + numbers.index(float(entry.text)))
    return tuple(zip(*columns, strict=True))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def value_range(values: Sequence[float], form: str = ",") -> str:
    """One value, or the smallest and largest: `2,048`, `5,120–16,384`."""
    if not values:
        return MISSING
    ends = dict.fromkeys(f"{value:{form}}" for value in (values[0], values[-1]))
    return "–".join(ends)
