"""Predictions and accuracies of a task, as `TunedModel.predict` and `TunedModel.evaluate` return them."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from clipbias.checks import check_int
from clipbias.clip.encode import image_batches, is_normalised
from clipbias.clip.params import Params
from clipbias.data.confusion import binomial_error, class_accuracies, confusion, least_recognised, most_confused_with
from clipbias.data.transforms import test_views
from clipbias.data.user_images import Pictures, list_images, to_rgb
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable
from clipbias.tuning import Task
from clipbias.tuning.classifier import Classifier, Text
from clipbias.tuning.method import Learnables
from clipbias.tuning.test_time_method import crops_of, mixes_crops

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


@functools.partial(jax.jit, static_argnums=0)
def softmax(
    classifier: Classifier, params: Params, learnables: Learnables, images: jax.Array, text: Text, mask: jax.Array
) -> jax.Array:
    """Probabilities `[B, C]` of normalised images; the other arguments are those of `Classifier.logits`."""
    return jax.nn.softmax(classifier.logits(params, learnables, images, text, mask), axis=-1)


def probabilities(
    task: Task, learnables: Learnables, pictures: Pictures, batch_size: int, *, normalised: bool = False
) -> np.ndarray:
    """Probabilities `[B, C]` of pictures, see `TunedModel.predict`."""
    check_int("batch_size", batch_size, lowest=1)
    params = task.clip.device_params
    text = task.text if task.method.conditional else task.text_features(params, learnables)
    found = [np.zeros((0, len(task.class_names)), np.float32)]
    for images, count in _batches(task, pictures, batch_size, normalised):
        mask = np.arange(len(images)) < count
        found.append(np.asarray(softmax(task.classifier, params, learnables, images, text, mask))[:count])
    return np.concatenate(found)


def _batches(task: Task, pictures: Pictures, batch_size: int, normalised: bool) -> Iterator[tuple[Any, int]]:
    """Normalised images and how many of them count; for a method that learns of crops, one image with its crops."""
    preprocessing, crops = task.clip.preprocessing, crops_of(task.method)
    if not crops:
        for images, count in image_batches(preprocessing, pictures, batch_size, normalised=normalised):
            ready = images.dtype != np.uint8
            yield images.astype(np.float32) if ready else preprocessing.normalize(images), count
        return
    if is_normalised(pictures):
        raise ClipbiasError(f"{type(task.method).__name__} takes crops of whole pictures; give these, not normalised.")
    size, mixed = task.clip.preprocessing.side, mixes_crops(task.method)
    for number, image in enumerate(list_images(pictures)[0]):
        views = test_views(to_rgb(image, f"image {number}"), size, crops, mixed=mixed)
        yield np.asarray(preprocessing.normalize(views))[None], 1
