"""Names, options and kinds of methods."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

# A method's options by name, as plain values; and those of its authors for each dataset.
Options = Mapping[str, Any]
DatasetOptions = Mapping[str, Options]


@dataclasses.dataclass(frozen=True)
class Preset:
    """A name of a method, and the options that it stands for.

    Attributes:
      label: name in tables and figures.
      options: options that differ from the method's defaults.
      order: position among the rows of a table. Methods that change more of both towers come later.
      datasets: the authors' options for each dataset under this name; `None` for those of the class, `Method.datasets`.
    """

    label: str
    options: Options = dataclasses.field(default_factory=dict)
    order: int = 1000
    datasets: DatasetOptions | None = None


class Kind(enum.StrEnum):
    """Groups of methods, by what they change."""

    TRAINING_FREE = "training-free"
    HEAD = "head"
    PROMPTS = "prompts"
    WEIGHTS = "weights"
    TEST_TIME = "test-time"
