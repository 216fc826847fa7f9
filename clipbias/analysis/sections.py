"""Sections of a study: a name, a title, and a generator that computes a result.

Every `Section` that a module of this package defines is part of a study. Its result is stored under its name, and
`report` shows it if a module there defines a `Drawing` of it. No list names the sections.
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, Generic, TypeVar

from clipbias import analysis
from clipbias.analysis.results import StudyResults, present
from clipbias.analysis.study import Computation, Study
from clipbias.errors import ClipbiasError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Section(Generic[T]):
    name: str  # key among results and in `--config.sections`
    title: str  # heading on the page
    result: Any  # type of its result, a dataclass or a dictionary of them by model, by which `results_file` reads it
    compute: Callable[[Study], Computation[T]]  # yields requests for images, returns the result
    # Returns the final result once the verdict is known. Default: the same result.
    finish: Callable[[Study, StudyResults], T] | None = None

    def of(self, results: StudyResults) -> T | None:
        """Returns the section's result; `None` where it was not requested."""
        return results.sections.get(self.name)

    def present(self, results: StudyResults) -> dict[str, Any]:
        """Returns the results of the models that the section does not leave out, by key."""
        return present(results.by_model(self.name))


def defined_in(package: ModuleType, kind: type[T]) -> list[T]:
    """Returns the values of a class that the modules of a package define."""
    modules = [
        importlib.import_module(f"{package.__name__}.{each.name}") for each in pkgutil.iter_modules(package.__path__)
    ]
    # By object: a value that a module imports from another one counts once.
    values = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, kind)}
    return list(values.values())


@functools.cache
def all_sections() -> dict[str, Section[Any]]:
    """Returns the sections of this package by name, in alphabetical order."""
    sections: dict[str, Section[Any]] = {}
    # Results on disk have no other key: a second section of a name would be read as the first.
    for section in defined_in(analysis, Section):
        if sections.setdefault(section.name, section) is not section:
            place = section.compute.__module__
            raise ClipbiasError(f"two sections are called {section.name!r}, the second in {place}; rename it.")
    return dict(sorted(sections.items()))
