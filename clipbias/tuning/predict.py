"""What a task says of pictures: the probabilities of its classes, for `Task.predict`."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.checks import check_int
from clipbias.clip.encode import image_batches
from clipbias.clip.params import Params
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable
from clipbias.tuning.classifier import Classifier, Text
from clipbias.tuning.method import Learnables
from clipbias.tuning.test_time_method import crops_of, mixes_crops

if TYPE_CHECKING:
    from clipbias.tuning.task import Task

# Pictures that are written out.
_SHOWN = 10


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a task says of `B` pictures.

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
        for row in self.probabilities[:_SHOWN]:
            best = np.argsort(-row, kind="stable")[:3]
            lines.append(", ".join(f"{printable(self.class_names[label])} {100 * row[label]:.1f} %" for label in best))
        if len(self) > _SHOWN:
            lines.append(f"… and {len(self) - _SHOWN} more pictures")
        return "\n".join(lines) or "no pictures"


@functools.partial(jax.jit, static_argnums=0)
def probabilities(
    classifier: Classifier, params: Params, learnables: Learnables, images: jax.Array, text: Text, mask: jax.Array
) -> jax.Array:
    """Probabilities `[B, C]` of normalised images; the others arguments as those of `Classifier.logits`."""
    return jax.nn.softmax(classifier.logits(params, learnables, images, text, mask), axis=-1)


def learned(task: "Task", learnables: Learnables | None) -> Learnables:
    """`learnables`, or for a method that has none the empty ones. Raises `ClipbiasError` where some are missing."""
    if learnables is None and jax.tree.leaves(task.shapes):
        raise ClipbiasError(
            f"{type(task.method).__name__} has learned something; give it as `learnables`: what `task.fit` returned, "
            "`task.init` before training, or an adapter's."
        )
    return task.init() if learnables is None else learnables


def predict(task: "Task", images: Any, learnables: Learnables | None, batch_size: int) -> Prediction:
    """See `Task.predict`."""
    check_int("batch_size", batch_size, lowest=1)
    learnables, params = learned(task, learnables), task.clip.device_params
    text = task.text if task.method.conditional else task.text_features(params, learnables)
    found = []
    for batch, count in _batches(task, images, batch_size):
        normalised = batch if batch.dtype == np.float32 else task.clip.preprocessing.normalize(batch)
        mask = np.arange(len(batch)) < count
        each = probabilities(task.classifier, params, learnables, normalised, text, mask)
        found.append(np.asarray(each)[:count])
    none = np.zeros((0, len(task.class_names)), np.float32)
    return Prediction(task.class_names, np.concatenate(found) if found else none)


def _batches(task: "Task", images: Any, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Images with, where the method learns of them, crops of each, which want the whole picture."""
    crops = crops_of(task.method)
    if not crops:
        for batch, count in image_batches(task.clip, images, batch_size):
            yield batch if batch.dtype == np.uint8 else batch.astype(np.float32), count
        return
    from clipbias.data.given import listed, picture
    from clipbias.data.transforms import test_views

    if jnp.issubdtype(getattr(images, "dtype", np.uint8), jnp.floating):
        raise ClipbiasError(f"{type(task.method).__name__} takes crops of whole pictures; give these, not normalised.")
    size, mixed = task.clip.config.vision.image_size, mixes_crops(task.method)
    for number, image in enumerate(listed(images)[0]):
        views = test_views(picture(image, f"image {number}"), size, crops, mixed=mixed)
        yield np.asarray(task.clip.preprocessing.normalize(views))[None], 1
