"""Classes with their prompt template and descriptions, from a list of names or a dataset."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from clipbias.checks import shown
from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data.descriptions import Descriptions
from clipbias.errors import ClipbiasError


@runtime_checkable
class ClassList(Protocol):
    """Classes and their prompt template: a `clipbias.data.Dataset`, an `Adapter` or another `Task`.

    If it has a `name`, the method takes its authors' options for the dataset of that name.
    """

    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def template(self) -> str: ...
    @property
    def descriptions(self) -> Descriptions | Mapping[str, Sequence[str]] | None: ...


@dataclasses.dataclass(frozen=True)
class Classes:
    """Class names and what comes with them; a `ClassList` itself.

    Attributes:
      class_names: the classes.
      template: of the dataset, else the default.
      descriptions: of the dataset.
      name: the dataset's, if it has one.
    """

    class_names: tuple[str, ...]
    template: str = DEFAULT_TEMPLATE
    descriptions: Descriptions | Mapping[str, Sequence[str]] | None = None
    name: str | None = None

    @classmethod
    def of(cls, classes: Sequence[str] | ClassList) -> "Classes":
        """From a list of names or a dataset. Raises `ClipbiasError` for a list that holds a name twice."""
        if not isinstance(classes, ClassList):
            return cls(check_class_names(classes))
        name = getattr(classes, "name", None)
        return cls(tuple(classes.class_names), classes.template, classes.descriptions, name)


def check_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of a list. Raises `ClipbiasError` where it is none, or a name occurs twice."""
    if isinstance(names, str):
        raise ClipbiasError(f"class_names is the text {shown(names)}; give a list of names.")
    if names is None or isinstance(names, Mapping):
        raise ClipbiasError(f"class_names is {shown(names)}; give a list of names.")
    try:
        counts = collections.Counter(names)
    except TypeError as error:
        raise ClipbiasError(f"class_names is {shown(names)}; give a list of names.") from error
    for name, count in counts.items():
        if count > 1:
            raise ClipbiasError(
                f"the class name {shown(name)} occurs {count} times; give each class a name of its own, or the whole "
                "dataset where two of its classes share a name."
            )
    return tuple(names)


def check_distinct(names: Sequence[str], ids: np.ndarray) -> None:
    """Raises `ClipbiasError` for two names that the model reads as the same text, as "cat" and "Cat".

    Args:
      names: `C` class names.
      ids: token ids of their texts, `[C, N]` or with more rows after these.
    """
    by_text: dict[bytes, str] = {}
    for name, row in zip(names, ids, strict=False):
        other = by_text.setdefault(row.tobytes(), name)
        if other != name:
            raise ClipbiasError(
                f"the model reads the class names {shown(other)} and {shown(name)} as the same text; leave out or "
                "rename one."
            )
