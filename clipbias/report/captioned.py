"""A figure together with what a reader needs to trust it: its caption and its numbers."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipbias.io import atomic_path
from clipbias.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class CaptionedFigure:
    """One figure with its words and numbers.

    Attributes:
      name: the stem of its files.
      title: what it shows, in a few words.
      caption: whole sentences: the definition of every quantity, the number of samples, the options used.
      figure: the matplotlib figure.
      columns, rows: its numbers, one observation per row.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def save(self, folder: Path) -> tuple[Path, Path, Path]:
        """Writes NAME.pdf, NAME.png and NAME.csv and returns their paths. Raises `ClipbiasError` where it cannot."""
        pdf, png = style.save_figure(self.figure, folder / self.name)
        table = folder / f"{self.name}.csv"
        write_csv(table, self.columns, self.rows)
        return pdf, png, table


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table atomically. Numbers keep all their digits; the cell of one that is not finite is left empty."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_plain(value) for value in row] for row in rows)


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
