"""A section of a study is one thing: a name, a line that says what it measures, and a generator that computes it.

Every `Section` that a module of this package defines is in a study. Its result is stored under its name, and
`report` shows it where a module there defines a `Drawing` of it. No list of sections stands anywhere else.
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from clipbias import analysis
from clipbias.analysis.results import StudyResults
from clipbias.analysis.study import Computation, Study
from clipbias.errors import ClipbiasError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Section(Generic[T]):
    """A part of a study.

    Attributes:
      name: its key among results and in `--config.sections`.
      title: says what it shows, above it on the page.
      result: the type of its result, a dataclass, or a dictionary of dataclasses by model; `results_file` reads the
        result back by it.
      compute: yields requests for images and returns the result.
      finish: returns the result again when the verdict is known. Default: it stays.
    """

    name: str
    title: str
    result: Any
    compute: Callable[[Study], Computation[T]]
    finish: Callable[[Study, StudyResults], T] | None = None

    def of(self, results: StudyResults) -> T | None:
        """The section's result; `None` where it was not requested."""
        return results.sections.get(self.name)


@functools.cache
def all_sections() -> dict[str, Section[Any]]:
    """The sections of all modules of this package, by name, in alphabetical order."""
    sections: dict[str, Section[Any]] = {}
    for module in pkgutil.iter_modules(analysis.__path__):
        for value in vars(importlib.import_module(f"{analysis.__name__}.{module.name}")).values():
            if isinstance(value, Section) and sections.setdefault(value.name, value) is not value:
                raise ClipbiasError(f"two sections are called {value.name!r}, the second in {module.name}; rename it.")
    return dict(sorted(sections.items()))
