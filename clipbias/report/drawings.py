"""Drawings of a study's sections: the page shows every `Drawing` that a module of this package defines."""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

from clipbias import report
from clipbias.analysis.results import StudyResults
from clipbias.analysis.sections import Section
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
    modules = [
        importlib.import_module(f"{report.__name__}.{module.name}") for module in pkgutil.iter_modules(report.__path__)
    ]
    drawings = [value for module in modules for value in vars(module).values() if isinstance(value, Drawing)]
    # A drawing that a module imports from another counts once.
    return tuple(sorted(dict.fromkeys(drawings), key=lambda drawing: drawing.place))
