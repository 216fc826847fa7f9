"""Evaluates runs on a split, one or several at once, and caches the features that all runs share."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias import hosts
from clipbias.clip import Clip
from clipbias.clip.params import Params
from clipbias.data import Split
from clipbias.data.images import Images
from clipbias.data.pipeline import Batch, test_batches
from clipbias.data.workers import Workers
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.answers import answers, image_features, images_per_step, logits, text_features, verdicts
from clipbias.training.calibration import Outcome, calibration, fit_temperature
from clipbias.training.memory import explain_exhaustion
from clipbias.tuning.classifier import Classifier, Text
from clipbias.tuning.method import Learnables, Method
from clipbias.tuning.test_time_method import crops_of, mixes_crops


class Budget:
    """Bytes that evaluators may keep together. What is asked of it depends on numbers of images alone.

    So all processes get the same answers.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def take(self, count: int) -> bool:
        """Whether so many bytes are left, which are then taken."""
        fits = count <= self._left
        self._left -= count if fits else 0
        return fits

    def clear(self) -> None:
        """Gives all bytes back."""
        self._left = self._limit


class Evaluator:
    """Evaluates runs on one split, and keeps what does not depend on the run.

    Image features under a method that leaves images alone are the same for all of them: they are computed once. Decoded
    and resized images, and features, are kept if they fit the budget.

    Attributes:
      skipped: how many images could not be read.
      predicted: of the latest evaluation, the class that each run gives every image, int32 `[R, n]`; -1 where an image
        could not be read.
      log_probs: of the latest evaluation, see `answers.Answers`: float16 `[R, n, 7]`.
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
        workers: Workers | None = None,
        budget: Budget | None = None,
        fill: bool = False,
    ) -> None:
        """Prepares nothing yet.

        Args:
          clip: the frozen model; its geometry and preprocessing are used.
          params: its weights on the mesh.
          split: images to evaluate on.
          mesh: where to compute.
          batch_size: images per step over all devices; rounded up to a multiple of the `data` axis.
          on_error: "raise" or "skip" images that cannot be read.
          workers: threads that decode; `None` for its own.
          budget: what it may keep, which others may share; nothing without one.
          fill: whether fewer images than a batch are filled up to one, so that the program of another split serves.
        """
        if len(split) == 0:
            raise ClipbiasError("there is no image to evaluate on; check the data folder and the class selection.")
        self.clip, self.params, self.split, self.mesh, self.on_error = clip, params, split, mesh, on_error
        size = mesh.shape[meshes.DATA]
        self.batch_size = -(-(batch_size if fill else min(batch_size, len(split))) // size) * size
        self.skipped = 0
        self.predicted: np.ndarray | None = None
        self.log_probs: np.ndarray | None = None
        self._workers, self._budget = Workers.of(workers), budget or Budget(0)
        self._kept: list[Batch] | None = None
        self._fits: dict[Any, bool] = {}
        # By what else than the image itself they are of: its patches, how many crops, and whether these are mixed. With
        # batches without images.
        self._plain_features: dict[tuple[bool, int, bool], list[tuple[jax.Array, Batch]]] = {}

    def _may_keep(self, what: Any, bytes_per_image: int) -> bool:
        """Whether there is room for something of each image, which is then taken, once."""
        if what not in self._fits:
            self._fits[what] = self._budget.take(len(self.split) * bytes_per_image)
        return self._fits[what]

    def _batches(self, method: Method) -> Iterator[Batch]:
        crops = crops_of(method)
        if self._kept is not None and not crops:
            yield from self._kept
            return
        share = meshes.share(self.mesh)
        batches = test_batches(
            self.split,
            image_size=self.clip.preprocessing.side,
            batch_size=images_per_step(self.batch_size, crops, self.mesh),
            crops=crops,
            mixed=mixes_crops(method),
            shard=(share.part, share.parts),
            on_error=self.on_error,
            workers=self._workers,
        )
        kept, keep = [], not crops and self._may_keep("images", 3 * self.clip.config.vision.image_size**2)
        for batch in batches:
            if keep:
                kept.append(batch)
            yield batch
        # Processes that read the same part skip the same images.
        self.skipped = sum(dict(hosts.gather([share.part, batches.skipped])).values())
        if keep:
            self._kept = kept

    def _features(self, classifier: Classifier, learnables: Learnables, runs: int) -> Iterator[tuple[jax.Array, Batch]]:
        changes = classifier.changes_vision(jax.tree.map(lambda leaf: leaf[0], learnables))
        method = classifier.method
        crops, width = crops_of(method), self.clip.config.projection_width
        key = method.patches, crops, mixes_crops(method)
        if not changes and key in self._plain_features:
            yield from self._plain_features[key]
            return
        per_image = 1 + (self.clip.config.vision.patches if method.patches else crops)
        keep = not changes and self._may_keep(key, 4 * per_image * width)
        if not changes:  # one set of features serves every run
            learnables, runs = jax.tree.map(lambda leaf: leaf[:1], learnables), 1
        plain = []
        for batch in self._batches(method):
            images = meshes.place_rows(self.mesh, batch["images"])
            given = (classifier, self.clip.preprocessing, self.params, learnables, images)
            features = image_features(*given, runs=runs, mesh=self.mesh)
            if keep:
                plain.append((features, {name: batch[name] for name in ("labels", "mask")}))
            yield features, batch
        if plain:
            self._plain_features[key] = plain

    def _texts(self, classifier: Classifier, learnables: Learnables, text: Text, runs: int) -> Any:
        """What `logits` takes of the texts; those that depend on the image are run with each batch."""
        if classifier.method.conditional:
            return text
        if classifier.changes_text(jax.tree.map(lambda leaf: leaf[0], learnables)):
            with explain_exhaustion("lower --config.eval_batch_size."):
                return text_features(classifier, self.params, learnables, text, runs=runs)
        return text[None]  # type: ignore[index]

    def _each_batch(
        self,
        compute: Callable[..., Any],
        classifier: Classifier,
        learnables: Learnables,
        texts: Any,
        *rest: Any,
        runs: int,
        labelled: bool = False,
    ) -> tuple[list[Any], np.ndarray]:
        """What `compute` finds under each run, batch by batch, on the host; and labels `[n]`, -1 where there is none.

        A label is missing where a batch is filled up, or an image could not be read. With `labelled` they are what
        `compute` is given last.
        """
        found = []
        with explain_exhaustion("lower --config.eval_batch_size."):
            for features, batch in self._features(classifier, learnables, runs):
                if hosts.stops():
                    raise hosts.Stopped
                labels = np.where(batch["mask"], batch["labels"], -1)
                mask, placed = (meshes.place_rows(self.mesh, rows) for rows in (batch["mask"], labels))
                arguments = (classifier, self.params, learnables, features, texts, mask, *rest)
                arguments += (placed,) if labelled else ()
                found.append((compute(*arguments, runs=runs), placed))
        fetched = meshes.device_get(found)
        return [values for values, _ in fetched], np.concatenate([labels for _, labels in fetched])

    def outcomes(
        self,
        classifier: Classifier,
        learnables: Learnables,
        text: Text,
        *,
        runs: int,
        validation: "Evaluator | None" = None,
    ) -> tuple[list[Outcome], list[float] | None]:
        """What each run says of every image that could be read.

        Args:
          classifier: the method's mathematics.
          learnables: with leading axis `R`; empty for zero-shot.
          text: what stands for the classes.
          runs: `R`.
          validation: of images of the same classes to fit each run's temperature on.

        Returns:
          Of each run the outcomes, and its temperature, `None` without validation images that could be read.
        """
        texts = self._texts(classifier, learnables, text, runs)
        fitted = None if validation is None else validation._temperatures(classifier, learnables, texts, runs)
        given = np.asarray(np.ones(runs) if fitted is None else fitted, np.float32)
        values, labels = self._each_batch(answers, classifier, learnables, texts, given, runs=runs, labelled=True)
        read = labels >= 0
        if not read.any():
            raise ClipbiasError("none of the images to evaluate on could be read.")
        whole = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *values)
        self.predicted = np.where(read, whole.predicted, -1)[:, : len(self.split)].astype(np.int32)
        self.log_probs = whole.log_probs[:, : len(self.split)]
        every = jax.tree.map(lambda values: values[:, read], whole)
        _check_finite(every.highest)
        correct = every.predicted == labels[read]
        found = [
            Outcome(correct[run], every.doubt[run], every.highest[run], None if fitted is None else every.doubt_at[run])
            for run in range(runs)
        ]
        return found, fitted

    def validate(
        self, classifier: Classifier, learnables: Learnables, text: Text, *, runs: int
    ) -> list[dict[str, int | float]]:
        """How well each run does on these images, to choose one by; arguments as in `outcomes`.

        Returns:
          For each run `{"accuracy", "correct", "images", "loss"}`: top-1 accuracy in percent, the counts behind it, and
          the mean cross-entropy in nats.
        """
        texts = self._texts(classifier, learnables, text, runs)
        values, labels = self._each_batch(verdicts, classifier, learnables, texts, runs=runs, labelled=True)
        read = labels >= 0
        if not read.any():
            raise ClipbiasError("none of the validation images could be read.")
        correct, loss = (np.concatenate(parts, axis=1)[:, read] for parts in zip(*values, strict=True))
        _check_finite(loss)
        images = int(read.sum())
        return [
            {
                "accuracy": 100 * int(right.sum()) / images,
                "correct": int(right.sum()),
                "images": images,
                "loss": float(own.mean(dtype=np.float64)),
            }
            for right, own in zip(correct, loss, strict=True)
        ]

    def pseudo_labels(self, classifier: Classifier, text: Text) -> tuple[np.ndarray, np.ndarray]:
        """The class that a classifier without learnables takes each image for, int32 `[n]`, and the doubt in it.

        Doubt is as in `Outcome`. An image that could not be read has the class -1.
        """
        texts = self._texts(classifier, {}, text, 1)
        values, labels = self._each_batch(answers, classifier, {}, texts, np.ones(1, np.float32), runs=1, labelled=True)
        every = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1)[0], *values)
        count = len(self.split)
        return np.where(labels < 0, -1, every.predicted)[:count].astype(np.int32), every.doubt[:count]

    def _temperatures(
        self, classifier: Classifier, learnables: Learnables, texts: Any, runs: int
    ) -> list[float] | None:
        """The temperature that these images ask for, for each run; `None` if none of them could be read."""
        values, labels = self._each_batch(logits, classifier, learnables, texts, runs=runs)
        read = labels >= 0
        if not read.any():
            return None
        found = np.concatenate(values, axis=1)[:, read]
        _check_finite(found)
        return [fit_temperature(own, labels[read]) for own in found]

    def accuracy(
        self,
        classifier: Classifier,
        learnables: Learnables,
        text: Text,
        *,
        runs: int,
        validation: "Evaluator | None" = None,
    ) -> list[dict[str, Any]]:
        """Top-1 accuracy in percent of each run, with the counts behind it; arguments as in `outcomes`.

        Returns:
          For each run `{"accuracy", "correct", "images", "calibration"}`.
        """
        found, fitted = self.outcomes(classifier, learnables, text, runs=runs, validation=validation)
        return [score(outcome, None if fitted is None else fitted[run]) for run, outcome in enumerate(found)]


def _check_finite(logits: np.ndarray) -> None:
    """Raises `ClipbiasError` where logits are no numbers, whose largest would still count as a prediction."""
    if not np.isfinite(logits).all():
        raise ClipbiasError(
            "what is computed for the images is not finite: what was learned is too large; tune again with a lower "
            "--config.learning_rate."
        )


def score(outcome: Outcome, temperature: float | None) -> dict[str, Any]:
    """Top-1 accuracy in percent with the counts behind it, and how well calibrated the confidence is."""
    correct, images = int(outcome.correct.sum()), len(outcome.correct)
    # A rounding error of a device is no difference between two runs.
    calibrated = {name: round(value, 4) for name, value in calibration(outcome, temperature).items()}
    return {"accuracy": 100 * correct / images, "correct": correct, "images": images, "calibration": calibrated}
