"""Predictions and accuracies of a task, as `TunedModel.predict` and `TunedModel.evaluate` return them."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipbias.data.confusion import class_accuracies, class_summary, confusion, least_recognised, most_confused_with
from clipbias.errors import ClipbiasError
from clipbias.intervals import SMALL, accuracy_words, binomial_error, wilson_interval
from clipbias.sentences import counted
from clipbias.terminal import printable
from clipbias.tuning.conformal import NOT_CALIBRATED, AnswerRule, measured_words

# Lines of a printed result.
_PICTURES = 10
_CLASSES = 5


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The probabilities of a task's classes for `B` pictures.

    Attributes:
      class_names: the `C` classes.
      probabilities: float32 `[B, C]`, each row of sum 1; NaN for a picture that could not be read.
      errors: reasons of the pictures that could not be read, by their numbers.
      logits: float32 `[B, C]`, NaN likewise.
      rule: thresholds of sets and rejection; `None` without calibration.
    """

    class_names: tuple[str, ...]
    probabilities: np.ndarray
    errors: Mapping[int, str]
    logits: np.ndarray
    rule: AnswerRule | None = None

    @property
    def labels(self) -> np.ndarray:
        """The number of each picture's most likely class, int64 `[B]`; -1 for a picture that could not be read."""
        # `argmax` of a row of NaN is 0, which is a class.
        labels = self.probabilities.argmax(-1)
        labels[list(self.errors)] = -1
        return labels

    @property
    def classes(self) -> list[str | None]:
        """The name of each picture's most likely class; `None` for a picture that could not be read."""
        return [None if label < 0 else self.class_names[label] for label in self.labels]

    @functools.cached_property
    def sets(self) -> list[tuple[str, ...]]:
        """Each picture's prediction set, the likeliest class first. Raises `ClipbiasError` without calibration."""
        # Cached, since a printed result asks for the set of each picture.
        return self._rule.names(self.logits, self.class_names)

    @functools.cached_property
    def rejected(self) -> np.ndarray:
        """Rejected pictures, bool `[B]`; false for pictures that could not be read. Raises as `sets`."""
        return self._rule.rejected(self.logits)

    @property
    def _rule(self) -> AnswerRule:
        if self.rule is None:
            raise ClipbiasError(f"there are no prediction sets: {NOT_CALIBRATED}.")
        return self.rule

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        lines = []
        for number, row in enumerate(self.probabilities[:_PICTURES]):
            if number in self.errors:
                lines.append(printable(self.errors[number]))
                continue
            # A stable sort: equal probabilities stand in the order of the classes, on every machine.
            best = np.argsort(-row, kind="stable")[:3]
            line = ", ".join(f"{printable(self.class_names[label])} {100 * row[label]:.1f} %" for label in best)
            lines.append("; ".join(filter(None, (line, self.answer(number)))))
        if len(self) > _PICTURES:
            lines.append(f"… and {len(self) - _PICTURES} more pictures")
        if lines and self.rule is None:
            lines.append(f"no prediction sets: {NOT_CALIBRATED}")
        elif lines and self.rule is not None and self.rule.caution:
            lines.append(self.rule.caution)
        return "\n".join(lines) or "no pictures"

    def answer(self, number: int) -> str:
        """A picture's prediction set in words, or "none of these"; "" without calibration."""
        return "" if self.rule is None else self.rule.words(self.sets[number], bool(self.rejected[number]))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Accuracy:
    """Predictions on labelled images, with accuracies overall and by class.

    Attributes:
      class_names: the `C` classes.
      labels: int32 `[n]`, the true classes.
      predicted: int32 `[n]`, the most likely classes; -1 for an image that could not be read, which does not count.
      calibration: errors in percent, see `training.calibration`.
      answers: measures of a calibrated model's sets and rejections, see `tuning.conformal.measure`.
      by_number: whether the user gave numbers as labels, whose order a printed result shows.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    calibration: dict[str, float]
    answers: dict[str, float] | None = None
    by_number: bool = False

    @property
    def images(self) -> int:
        """Number of images that were read."""
        return int((self.predicted >= 0).sum())

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        # Unread images are -1, which is no label; they are missing from the denominator too.
        return 100 * int((self.labels == self.predicted).sum()) / self.images

    @property
    def class_summary(self) -> dict[str, Any]:
        """Balanced accuracy, macro-F1 and the worst class, which count each class alike (`data.confusion`)."""
        return class_summary(self.labels, self.predicted, self.class_names)

    @property
    def balanced_accuracy(self) -> float:
        """The mean of `per_class` in percent, without classes that have no images."""
        return self.class_summary["balanced_accuracy"]

    @property
    def macro_f1(self) -> float:
        """The mean over classes of F1 in percent, without classes that have no images."""
        return self.class_summary["macro_f1"]

    @property
    def standard_error(self) -> float:
        """The standard error of `accuracy`, in points: binomial; of few images by the width of Wilson's interval."""
        return binomial_error(self.accuracy, self.images)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `accuracy` in percent (Wilson 1927)."""
        return wilson_interval(self.accuracy, self.images)

    @property
    def confusion(self) -> np.ndarray:
        """Counts of images by true class (rows) and predicted class (columns), int64 `[C, C]`."""
        return confusion(self.labels, self.predicted, len(self.class_names))

    @property
    def per_class(self) -> np.ndarray:
        """The accuracy on the images of each class, in percent, float64 `[C]`; NaN for a class without images."""
        return class_accuracies(self.confusion)

    def __repr__(self) -> str:
        lines = [f"{self.accuracy:.2f} % (± {self.standard_error:.2f}) of {counted(self.images, 'image')}"]
        # The standard error is a poor measure for few images, so that the interval takes its place.
        if self.images < SMALL:
            lines = [accuracy_words(self.accuracy, self.images, "image")]
        if left_out := len(self.labels) - self.images:
            lines[0] += f"; {left_out} could not be read"
        # Computed once: each property would count all images again.
        counts = self.confusion
        accuracies = self.per_class
        others, times = most_confused_with(counts)
        for label in least_recognised(counts, _CLASSES):
            name, other = (printable(self.class_names[number]) for number in (label, others[label]))
            right = f"{accuracies[label]:.1f} % of {counts[label].sum()}"
            lines.append(f"  {name}: {right}, most often taken for {other} ({times[label]})")
        if self.by_number:
            names = [f"{number} is {printable(name)}" for number, name in enumerate(self.class_names)]
            lines.append(f"labels by number: {', '.join(names[:_PICTURES])}{', …' if names[_PICTURES:] else ''}")
            if self.interval[1] < 100 / len(names):
                lines[-1] += "; fewer are right than by chance, so check this order"
        if self.answers is not None:
            lines.append(measured_words(self.answers))
        return "\n".join(lines)
