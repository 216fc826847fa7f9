"""Drawings of a study's sections: the page shows every `Drawing` that a module of this package defines."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from clipbias import report
from clipbias.analysis.results import StudyResults
from clipbias.analysis.sections import Section, defined_in
from clipbias.report.pages import CaptionedFigure
from clipbias.report.table import Table

Figures = CaptionedFigure | Sequence[CaptionedFigure] | None


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A section on the page. Its functions return `None` if there is nothing to draw."""

    section: Section[Any]  # its title is the heading
    place: int  # orders the page, the smallest number first
    figures: Sequence[Callable[[StudyResults], Figures]] = ()
    tables: Sequence[Callable[[StudyResults], Table | None]] = ()
    explorer: Callable[[StudyResults], dict[str, Any] | None] = lambda study: None
    nothing: str = ""  # reason why a computed section may have nothing to draw


@functools.cache
def all_drawings() -> tuple[Drawing, ...]:
    """Returns the drawings of all modules of this package, in the order of the page."""
    # Found by type: a new drawing is on the page without an entry in a list.
    return tuple(sorted(defined_in(report, Drawing), key=lambda drawing: drawing.place))
