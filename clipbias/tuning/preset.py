"""What a method is called, and what kind of method it is."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """A name that a method goes by, and the options behind it.

    Attributes:
      label: what tables and figures call it.
      options: those that differ from the method's defaults.
      order: position among the rows of a table, from the least to the most that is learned in both towers.
      datasets: the authors' options for a dataset under this name; `None` for those of the class, `Method.datasets`.
    """

    label: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    order: int = 1000
    datasets: Mapping[str, Mapping[str, Any]] | None = None


class Kind(enum.StrEnum):
    """What methods are grouped by: what they change, or that nothing is trained."""

    TRAINING_FREE = "training-free"
    HEAD = "head"
    PROMPTS = "prompts"
    WEIGHTS = "weights"
    TEST_TIME = "test-time"
