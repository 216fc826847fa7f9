"""Predictions and accuracies of a task, as `TunedModel.predict` and `TunedModel.evaluate` return them."""

import dataclasses

import numpy as np

from clipbias.data.confusion import binomial_error, class_accuracies, confusion, least_recognised, most_confused_with
from clipbias.terminal import printable

# Pictures, and classes, that are written out.
_PICTURES, _CLASSES = 10, 5


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The probabilities of a task's classes for `B` pictures.

    Attributes:
      class_names: the `C` classes.
      probabilities: float32 `[B, C]`, each row of sum 1.
    """

    class_names: tuple[str, ...]
    probabilities: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The number of each picture's most likely class, int64 `[B]`."""
        return self.probabilities.argmax(-1)

    @property
    def classes(self) -> list[str]:
        """The name of each picture's most likely class."""
        return [self.class_names[label] for label in self.labels]

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        lines = []
        for row in self.probabilities[:_PICTURES]:
            best = np.argsort(-row, kind="stable")[:3]
            lines.append(", ".join(f"{printable(self.class_names[label])} {100 * row[label]:.1f} %" for label in best))
        if len(self) > _PICTURES:
            lines.append(f"… and {len(self) - _PICTURES} more pictures")
        return "\n".join(lines) or "no pictures"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Accuracy:
    """How well a task recognises labelled images.

    Attributes:
      class_names: the `C` classes.
      labels: int32 `[n]`, the true classes.
      predicted: int32 `[n]`, the most likely classes.
      calibration: errors in percent, see `training.calibration`.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    calibration: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * float((self.labels == self.predicted).mean())

    @property
    def standard_error(self) -> float:
        """The binomial standard error of `accuracy`, in points."""
        return binomial_error(self.accuracy, len(self.labels))

    @property
    def confusion(self) -> np.ndarray:
        """How many images of each class (rows) are taken for which class (columns), int64 `[C, C]`."""
        return confusion(self.labels, self.predicted, len(self.class_names))

    @property
    def per_class(self) -> np.ndarray:
        """The accuracy on the images of each class, in percent, float64 `[C]`; NaN for a class without images."""
        return class_accuracies(self.confusion)

    def __repr__(self) -> str:
        lines = [f"{self.accuracy:.2f} % (± {self.standard_error:.2f}) of {len(self.labels)} images"]
        counts, each = self.confusion, self.per_class
        others, times = most_confused_with(counts)
        for label in least_recognised(counts, _CLASSES):
            name, other = (printable(self.class_names[number]) for number in (label, others[label]))
            lines.append(
                f"  {name}: {each[label]:.1f} % of {counts[label].sum()}, most often taken for {other} ({times[label]})"
            )
        return "\n".join(lines)
