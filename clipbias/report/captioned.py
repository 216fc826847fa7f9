"""A figure together with what a reader needs to trust it: its caption and its numbers."""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clipbias.io import atomic_path
from clipbias.report import style
from clipbias.report.figure_captions import CAPTIONS

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
      numbers: one observation per row.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"
    numbers: pd.DataFrame

    def save(self, folder: Path) -> tuple[Path, Path, Path]:
        """Writes NAME.pdf, NAME.png and NAME.csv and returns their paths. Raises `ClipbiasError` where it cannot."""
        pdf, png = style.save_figure(self.figure, folder / self.name)
        table = folder / f"{self.name}.csv"
        write_csv(table, self.numbers)
        return pdf, png, table


def captioned(kind: str, figure: "Figure", numbers: pd.DataFrame, *, name: str = "", **facts: Any) -> CaptionedFigure:
    """The figure with the title and the caption of its kind.

    Args:
      kind: a key of `CAPTIONS`.
      name: the stem of its files, if not its kind.
      facts: what the templates leave open.
    """
    title, caption = CAPTIONS[kind]
    return CaptionedFigure(
        name or kind, title.format(**facts), " ".join(caption.format(**facts).split()), figure, numbers
    )


def file_name(text: str) -> str:
    """Letters, digits, dots and underscores only: `demo/digits` becomes `demo_digits`."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.") or "unnamed"


def write_csv(path: Path, numbers: pd.DataFrame) -> None:
    """Writes a table atomically. Numbers keep all their digits; the cell of one that is not finite is left empty."""
    with atomic_path(path) as temporary:
        numbers.replace([np.inf, -np.inf], np.nan).to_csv(temporary, index=False, lineterminator="\n")
