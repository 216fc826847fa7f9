"""How many images of each class are taken for which: what `Task.accuracy` gives."""

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh

from clipbias.data import Dataset, Split, load
from clipbias.data.confusion import binomial_error, class_accuracies, confusion, taken_for, weakest
from clipbias.data.given import labelled
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable
from clipbias.training import mesh as meshes
from clipbias.training.evaluate import evaluate
from clipbias.training.fit import check_classes
from clipbias.tuning import Task
from clipbias.tuning.method import Learnables

# Classes that are written out, the least recognised first.
_SHOWN = 5


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Accuracy:
    """How well a task recognises labelled images.

    Attributes:
      class_names: the `C` classes.
      labels: int32 `[n]`, what the images are.
      predicted: int32 `[n]`, what they are taken for.
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
        """How many images of each class (rows) are taken for which (columns), int64 `[C, C]`."""
        return confusion(self.labels, self.predicted, len(self.class_names))

    @property
    def per_class(self) -> np.ndarray:
        """The accuracy on the images of each class, in percent, float64 `[C]`; NaN for a class without images."""
        return class_accuracies(self.confusion)

    def __repr__(self) -> str:
        lines = [f"{self.accuracy:.2f} % (± {self.standard_error:.2f}) of {len(self.labels)} images"]
        found, each = self.confusion, self.per_class
        others, times = taken_for(found)
        for label in weakest(found, _SHOWN):
            name, other = (printable(self.class_names[number]) for number in (label, others[label]))
            lines.append(
                f"  {name}: {each[label]:.1f} % of {found[label].sum()}, most often taken for {other} ({times[label]})"
            )
        return "\n".join(lines)


def accuracy(
    task: Task,
    images: Any,
    labels: Any,
    learnables: Learnables,
    *,
    split: str,
    batch_size: int,
    mesh: Mesh | None,
) -> Accuracy:
    """See `Task.accuracy`."""
    chosen = _split(task, images, labels, split)
    kept: list[np.ndarray] = []
    score = evaluate(
        task,
        learnables,
        chosen,
        mesh=meshes.make_mesh() if mesh is None else mesh,
        eval_batch_size=batch_size,
        on_image_error="raise",
        save=kept.append,
    )
    return Accuracy(task.class_names, chosen.labels, kept[0], score["calibration"])


def _split(task: Task, images: Any, labels: Any, split: str) -> Split:
    if labels is None and isinstance(images, str):
        images = load(images)
    if isinstance(images, Split):
        return images
    if isinstance(images, Dataset):
        check_classes(task, images)
        return images.split(split)
    if labels is None:
        raise ClipbiasError("there are images without labels; give a dataset, or labels of the images.")
    return labelled(images, labels, task.class_names)
