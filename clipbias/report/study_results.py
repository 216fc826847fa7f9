"""Reading a study's results for drawing: models, averages, counts, names."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from clipbias.data.confusion import binomial_error
from clipbias.explain.results import Findings

KIND_NAMES = {"sos": "SOS", "prompt": "prompts", "words": "words", "category": "category", "dot": "“.”", "eos": "EOS"}
VARIANT_NAMES = {"clip": "", "without_prompt": "W/O Prompt", "with_prompt": "W Prompt"}


class Average(NamedTuple):
    """A mean over samples and its standard error, arrays of one shape; NaN where there is no error."""

    mean: np.ndarray
    standard_error: np.ndarray


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """A study's results, with short ways to what figures and pages need."""

    results: Findings

    @property
    def scalars(self) -> Mapping[str, Any]:
        return self.results.scalars

    @property
    def dataset(self) -> str:
        return self.scalars["dataset"]["name"]

    @property
    def models(self) -> list[Mapping[str, Any]]:
        return self.scalars["models"]

    @property
    def zero_shot(self) -> Mapping[str, Any]:
        return self.models[0]

    @property
    def tuned(self) -> list[Mapping[str, Any]]:
        return self.models[1:]

    @property
    def patches(self) -> int:
        return self.scalars["clip"]["patches"]

    @property
    def tokens(self) -> int:
        """Tokens of an image without prompts: the patches, and `[cls]` where there is one."""
        return self.scalars["clip"].get("tokens", self.patches + 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        grid = self.scalars["clip"]["grid"]
        return (grid, grid) if isinstance(grid, int) else (grid[0], grid[1])

    def array(self, name: str) -> np.ndarray | None:
        """An array by its path, or None where it was not computed."""
        return self.results.arrays.get(name)

    def present(self, name: str) -> np.ndarray:
        """An array by its path, where its section is known to have been computed."""
        return self.results.arrays[name]

    def average(self, name: str) -> Average | None:
        """A mean with its standard error by their common path, or None where they were not computed."""
        mean = self.array(f"{name}/mean")
        if mean is None:
            return None
        error = self.array(f"{name}/standard_error")
        return Average(mean, np.full_like(mean, np.nan) if error is None else error)

    def section(self, *path: str) -> Mapping[str, Any]:
        """The JSON part at a path, empty where there is none."""
        found: Any = self.scalars
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def count(self, *path: str) -> int | None:
        """The number of samples of a section."""
        return self.section(*path).get("count")

    def largest_count(self, section: str, models: Iterable[Mapping[str, Any]]) -> int | None:
        """The largest number of samples that a section has for one of the models."""
        return max((n for model in models if (n := self.count(section, model["key"])) is not None), default=None)


def by_reason(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """`A, B: why`, one line for each reason, of pairs of a label and a reason; without one there is nothing to say."""
    found: dict[str, list[str]] = {}
    for label, reason in reasons:
        if reason:
            found.setdefault(reason, []).append(label)
    return [f"{', '.join(dict.fromkeys(labels))}: {reason}" for reason, labels in found.items()]


def why_missing(study: StudyResults, section: str) -> list[str]:
    """Which models a section of the study left out, with its reasons."""
    models = ((label_of(model), study.section(section, model["key"]).get("missing", "")) for model in study.models)
    return by_reason(models)


def label_of(model: Mapping[str, Any]) -> str:
    """The name under which figures show a model."""
    return model.get("label") or model["key"]


def accuracy_and_error(part: Mapping[str, Any]) -> tuple[float, float]:
    """An accuracy and its binomial standard error, both in percent, from the counts `correct` and `images`."""
    accuracy = 100 * part["correct"] / part["images"]
    return accuracy, binomial_error(accuracy, part["images"])


def file_name(text: str) -> str:
    """Letters, digits, dots and underscores only: `demo/digits` becomes `demo_digits`."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.") or "unnamed"


def counted(number: int | None, thing: str) -> str:
    """`1 image`, `1,200 images`, `an unknown number of images`."""
    plural = thing + ("es" if thing.endswith("s") else "s")
    if number is None:
        return f"an unknown number of {plural}"
    return f"{number:,} {thing if number == 1 else plural}"
