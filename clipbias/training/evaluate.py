"""Top-1 accuracy on a split, for one run or several at once."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipbias.clip import Clip
from clipbias.clip.params import Params
from clipbias.clip.preprocess import Preprocessing
from clipbias.data import Split
from clipbias.data.images import Images
from clipbias.data.pipeline import Batch, test_batches
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.plan import CHUNKS, USABLE, device_limit, explain_exhaustion, needed_bytes
from clipbias.training.step import over_runs, place_text
from clipbias.tuning import Task
from clipbias.tuning.classifier import Classifier, Text
from clipbias.tuning.method import Learnables


@functools.partial(jax.jit, static_argnames=("classifier", "runs"))
def text_features(
    classifier: Classifier, params: Params, learnables: Learnables, text: Text, *, runs: int
) -> jax.Array:
    """The text tower's features under `R` runs, `[R, S · C, d]`: computed once per evaluation."""

    def one(learnables: Learnables) -> jax.Array:
        return classifier.encode_text(params, classifier.method.adapt(learnables), text)

    return over_runs(one, (0,), runs=runs)(learnables)


@functools.partial(jax.jit, static_argnames=("classifier", "preprocessing", "runs"))
def image_features(
    classifier: Classifier,
    preprocessing: Preprocessing,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    *,
    runs: int,
) -> jax.Array:
    """Features of uint8 images `[B, size, size, 3]` under `R` runs, `[R, B, d]`, as the tower makes them."""
    images = preprocessing.normalize(images)

    def one(learnables: Learnables) -> jax.Array:
        return classifier.encode_images(params, classifier.method.adapt(learnables), images)

    return over_runs(one, (0,), runs=runs)(learnables)


@functools.partial(jax.jit, static_argnames=("classifier", "runs"))
def predictions(
    classifier: Classifier,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    text: Text,
    mask: jax.Array,
    *,
    runs: int,
) -> jax.Array:
    """The most likely class under each run: int32 `[R, B]`.

    Args:
      images: features `[R, B, d]`, or `[1, B, d]` where they are the same for all runs.
      text: features `[R, S · C, d]`, or `[1, S · C, d]`; the texts themselves where they depend on the image.
      mask: `[B]`, which of the images count; the others only fill the batch.
      runs: `R`.
    """
    conditional = classifier.method.conditional

    def one(learnables: Learnables, image: jax.Array, own: jax.Array) -> jax.Array:
        if conditional:
            own = classifier.texts_for(params, learnables, classifier.method.adapt(learnables), image, text)
        return classifier.head(params, learnables, image, own, mask).argmax(-1).astype(jnp.int32)

    features = images if conditional else jnp.asarray(text)
    images, features = (jnp.broadcast_to(x, (runs, *x.shape[1:])) for x in (images, features))
    return over_runs(one, (0, 0, 0), runs=runs)(learnables, images, features)


class Evaluator:
    """Evaluates runs on one split, and keeps what does not depend on the run.

    Image features under a method that leaves images alone are the same for all of them: they are computed once. Decoded
    and resized images are kept while they fit `cache_bytes`.
    """

    def __init__(
        self,
        clip: Clip,
        params: Params,
        split: Split | Images,
        *,
        mesh: Mesh,
        batch_size: int,
        on_error: str = "raise",
        cache_bytes: int = 1 << 30,
    ) -> None:
        """Prepares nothing yet.

        Args:
          clip: the frozen model; its geometry and preprocessing are used.
          params: its weights on the mesh.
          split: images to evaluate on.
          mesh: where to compute.
          batch_size: images per step over all devices; rounded up to a multiple of the `data` axis.
          on_error: "raise" or "skip" images that cannot be read.
          cache_bytes: limit for resized images.
        """
        if len(split) == 0:
            raise ClipbiasError("there is no image to evaluate on; check the data folder and the class selection.")
        self.clip, self.params, self.split, self.mesh, self.on_error = clip, params, split, mesh, on_error
        size = mesh.shape[meshes.DATA]
        self.batch_size = -(-min(batch_size, len(split)) // size) * size
        self.skipped = 0
        per_image = 3 * clip.config.vision.image_size**2
        self._kept: list[Batch] | None = None
        self._keep = len(split) * per_image <= cache_bytes
        self._plain_features: dict[bool, list[jax.Array]] = {}  # by whether they are of patches, too

    def _batches(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        batches = test_batches(
            self.split,
            image_size=self.clip.config.vision.image_size,
            batch_size=self.batch_size,
            shard=(jax.process_index(), jax.process_count()),
            on_error=self.on_error,
        )
        kept = []
        for batch in batches:
            if self._keep:
                kept.append(batch)
            yield batch
        self.skipped = batches.skipped
        if self._keep:
            self._kept = kept

    def _features(self, classifier: Classifier, learnables: Learnables, runs: int) -> Iterator[tuple[jax.Array, Batch]]:
        changes = classifier.changes_vision(jax.tree.map(lambda leaf: leaf[0], learnables))
        patches = classifier.method.patches
        if not changes and patches in self._plain_features:
            yield from zip(self._plain_features[patches], self._batches(), strict=True)
            return
        if not changes:  # one set of features serves every run
            learnables, runs = jax.tree.map(lambda leaf: leaf[:1], learnables), 1
        plain = []
        for batch in self._batches():
            images = meshes.place_rows(self.mesh, batch["images"])
            features = image_features(classifier, self.clip.preprocessing, self.params, learnables, images, runs=runs)
            if not changes and self._keep:
                plain.append(features)
            yield features, batch
        if plain:
            self._plain_features[patches] = plain

    def _texts(self, classifier: Classifier, learnables: Learnables, text: Text, runs: int) -> Any:
        """What `predictions` takes of the texts; those that depend on the image are run with each batch."""
        if classifier.method.conditional:
            return text
        if classifier.changes_text(jax.tree.map(lambda leaf: leaf[0], learnables)):
            return text_features(classifier, self.params, learnables, text, runs=runs)
        return text[None]  # type: ignore[index]

    def predict(
        self, classifier: Classifier, learnables: Learnables, text: Text, *, runs: int
    ) -> Iterable[tuple[np.ndarray, Batch]]:
        """The predicted class of every image under each run, batch by batch: int32 `[R, B]` and this host's batch."""
        with explain_exhaustion("lower --config.eval_batch_size."):
            texts = self._texts(classifier, learnables, text, runs)
            for features, batch in self._features(classifier, learnables, runs):
                mask = meshes.place_rows(self.mesh, batch["mask"])
                yield predictions(classifier, self.params, learnables, features, texts, mask, runs=runs), batch

    def accuracy(
        self, classifier: Classifier, learnables: Learnables, text: Text, *, runs: int
    ) -> list[dict[str, Any]]:
        """Top-1 accuracy in percent of each run, with the counts behind it.

        Args:
          classifier: the method's mathematics.
          learnables: with leading axis `R`; empty for zero-shot.
          text: what stands for the classes.
          runs: `R`.

        Returns:
          For each run `{"accuracy", "correct", "images"}`.
        """
        correct, total = np.zeros(runs, np.int64), 0
        counts = []
        for predicted, batch in self.predict(classifier, learnables, text, runs=runs):
            labels = meshes.place_rows(self.mesh, batch["labels"])
            mask = meshes.place_rows(self.mesh, batch["mask"])
            counts.append(_count(predicted, labels, mask))
        for right, seen in meshes.fetch(counts):
            correct += right
            total += int(seen)
        if total == 0:
            raise ClipbiasError("none of the images to evaluate on could be read.")
        return [{"accuracy": 100 * int(c) / total, "correct": int(c), "images": total} for c in correct]


def fit_evaluation(make: Callable[..., Task], *, runs: int, mesh: Mesh, limit: int | None = None) -> Task:
    """The task whose class features of all runs fit the memory, computed in as few parts as possible.

    Args:
      make: binds the task, given `chunks`.
      runs: runs evaluated side by side.
      mesh: where to compute.
      limit: bytes of one device; `None` asks the device.
    """
    task = make()
    if not task.classifier.changes_text(task.shapes):
        return task  # the tower ran once, and `Task` sees to its size
    limit = device_limit() if limit is None else limit
    for chunks in (1, *(n for n in CHUNKS if 1 < n <= len(task.class_names))):
        task = make(chunks=chunks) if chunks > 1 else make()
        if not limit or class_bytes(task, runs=runs, mesh=mesh) <= USABLE * limit:
            break
    return task


def class_bytes(task: Task, *, runs: int, mesh: Mesh) -> int:
    """Bytes of one device that the class features of so many runs need."""
    params, learnables = _placed_shapes(task, runs, mesh)
    return needed_bytes(text_features, task.classifier, params, learnables, place_text(mesh, task, None), runs=runs)


def image_arguments(task: Task, *, batch: int, runs: int, mesh: Mesh) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Shapes, types and shardings of what `image_features` is called with."""
    runs = runs if task.classifier.changes_vision(task.shapes) else 1
    size = task.clip.config.vision.image_size
    batch += -batch % mesh.shape[meshes.DATA]
    images = meshes.place(mesh, jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8), meshes.DATA)
    params, learnables = _placed_shapes(task, runs, mesh)
    return (task.classifier, task.clip.preprocessing, params, learnables, images), {"runs": runs}


def _placed_shapes(task: Task, runs: int, mesh: Mesh) -> tuple[Params, Learnables]:
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype), task.shapes)
    return meshes.replicate(mesh, meshes.shapes(task.clip.params)), meshes.place(mesh, stacked, meshes.RUN)


def evaluate(
    task: Task, learnables: Learnables, split: Split, *, mesh: Mesh, eval_batch_size: int, on_image_error: str
) -> dict[str, Any]:
    """Top-1 accuracy of one set of learnables: `{"accuracy", "correct", "images"}`, and `skipped_images` if any."""
    params = meshes.replicate(mesh, task.clip.params)
    evaluator = Evaluator(
        task.clip, params, split, mesh=mesh, batch_size=eval_batch_size, on_error=on_image_error, cache_bytes=0
    )
    stacked = meshes.place(mesh, jax.tree.map(lambda leaf: np.asarray(leaf)[None], learnables), meshes.RUN)
    score = evaluator.accuracy(task.classifier, stacked, place_text(mesh, task, params), runs=1)[0]
    return score | ({"skipped_images": evaluator.skipped} if evaluator.skipped else {})


@jax.jit
def _count(predicted: jax.Array, labels: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    return ((predicted == labels) & mask).sum(-1), mask.sum()
