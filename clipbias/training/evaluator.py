"""Evaluates runs side by side on a split, and caches the features that all runs share."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias import hosts
from clipbias.data import Split
from clipbias.data.images import Images
from clipbias.data.pipeline import Batch, test_batches
from clipbias.data.workers import Workers
from clipbias.errors import ClipbiasError
from clipbias.training import mesh as meshes
from clipbias.training.calibration import Outcome, calibration, fit_temperature
from clipbias.training.device_memory import explain_exhaustion
from clipbias.training.outcomes import (
    EvalInputs,
    EvalStatic,
    check_finite,
    correct_and_loss,
    image_features,
    images_per_step,
    logits,
    outcomes,
    outcomes_and_logits,
    text_features,
)
from clipbias.training.spec import Row
from clipbias.tuning.method import Learnables
from clipbias.tuning.test_time_method import crops_of, mixes_crops


class Budget:
    """Bytes that evaluators may keep together. Requests depend on numbers of images alone: all processes agree."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def take(self, count: int) -> bool:
        """Whether so many bytes are left; if so, takes them."""
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
      log_probs: of the latest evaluation, see `outcomes.BatchOutcome`: float16 `[R, n, 7]`.
      logits_read: if the latest evaluation kept them, the logits of the images that could be read, `[R, m, C]`, and
        their labels `[m]`.
    """

    def __init__(
        self,
        split: Split | Images,
        *,
        mesh: Mesh,
        batch_size: int,
        on_error: str = "raise",
        workers: Workers | None = None,
        budget: Budget | None = None,
        whole_batches: bool = False,
    ) -> None:
        """Prepares nothing yet.

        Args:
          split: images to evaluate on.
          mesh: where to compute.
          batch_size: images per step over all devices; rounded up to a multiple of the `data` axis.
          on_error: "raise" or "skip" images that cannot be read.
          workers: threads that decode; `None` for its own.
          budget: what it may keep, which others may share; nothing without one.
          whole_batches: whether fewer images than a batch are padded to one, so that another split's program serves.
        """
        if len(split) == 0:
            raise ClipbiasError("there is no image to evaluate on; check the data folder and the class selection.")
        self.split = split
        self.mesh = mesh
        self.on_error = on_error
        size = mesh.shape[meshes.DATA]
        self.batch_size = -(-(batch_size if whole_batches else min(batch_size, len(split))) // size) * size
        self.skipped = 0
        self.predicted: np.ndarray | None = None
        self.log_probs: np.ndarray | None = None
        self.logits_read: tuple[np.ndarray, np.ndarray] | None = None
        self._workers = Workers.of(workers)
        self._budget = budget or Budget(0)
        self._images: list[Batch] | None = None
        self._fits: dict[Hashable, bool] = {}
        # By what they depend on besides the image: patches, number of crops, whether crops are mixed. With batches
        # without images.
        self._plain_features: dict[tuple[bool, int, bool], list[tuple[jax.Array, Batch]]] = {}

    def _may_keep(self, name: Hashable, bytes_per_image: int) -> bool:
        """Whether there is room for something of each image; if so, takes it, once."""
        if name not in self._fits:
            self._fits[name] = self._budget.take(len(self.split) * bytes_per_image)
        return self._fits[name]

    def _batches(self, static: EvalStatic) -> Iterator[Batch]:
        assert static.preprocessing is not None, "a split has images that are not normalised"
        method = static.classifier.method
        crops = crops_of(method)
        if self._images is not None and not crops:
            yield from self._images
            return
        share = meshes.share(self.mesh)
        batches = test_batches(
            self.split,
            resizing=static.preprocessing.resizing,
            batch_size=images_per_step(self.batch_size, crops, self.mesh),
            crops=crops,
            mixed=mixes_crops(method),
            shard=(share.part, share.parts),
            on_error=self.on_error,
            workers=self._workers,
        )
        images = list[Batch]()
        keep = not crops and self._may_keep("images", 3 * static.classifier.config.vision.image_size**2)
        for batch in batches:
            if keep:
                images.append(batch)
            yield batch
        # Processes that read the same shard skip the same images.
        skipped_by_shard = {part: skipped for part, skipped in hosts.gather([share.part, batches.skipped])}
        self.skipped = sum(skipped_by_shard.values())
        if keep:
            self._images = images

    def _features(self, static: EvalStatic, inputs: EvalInputs) -> Iterator[tuple[jax.Array, Batch]]:
        classifier = static.classifier
        method = classifier.method
        learnables = inputs.learnables
        changes = classifier.changes_vision(first_run(learnables))
        crops = crops_of(method)
        config = classifier.config
        key = method.patches, crops, mixes_crops(method)
        if not changes and key in self._plain_features:
            yield from self._plain_features[key]
            return
        per_image = 1 + (config.vision.patches if method.patches else crops)
        keep = not changes and self._may_keep(key, 4 * per_image * config.projection_width)
        if not changes:  # the features of one run serve all
            learnables = jax.tree.map(lambda leaf: leaf[:1], learnables)
            static = dataclasses.replace(static, runs=1)
        plain = []
        for batch in self._batches(static):
            images = meshes.place_rows(self.mesh, batch["images"])
            features = image_features(static, inputs.params, learnables, images)
            if keep:
                plain.append((features, {name: batch[name] for name in ("labels", "mask")}))
            yield features, batch
        if plain:
            self._plain_features[key] = plain

    def _each_batch(
        self, compute: Callable[..., Any], static: EvalStatic, inputs: EvalInputs, *rest: Any, labelled: bool = False
    ) -> tuple[list[Any], np.ndarray]:
        """The results of `compute` batch by batch, on the host; and labels `[n]`, -1 where there is none.

        A label is missing where a batch is padded, or an image could not be read. With `labelled` they are the argument
        behind the mask.
        """
        results = []
        with explain_exhaustion("lower --config.eval_batch_size."):
            for features, batch in self._features(static, inputs):
                if hosts.stops():
                    raise hosts.Stopped
                labels = np.where(batch["mask"], batch["labels"], -1)
                mask = meshes.place_rows(self.mesh, batch["mask"])
                placed = meshes.place_rows(self.mesh, labels)
                of_labels = (placed,) if labelled else ()
                results.append((compute(static, inputs, features, mask, *of_labels, *rest), placed))
        fetched = meshes.device_get(results)
        return [values for values, _ in fetched], np.concatenate([labels for _, labels in fetched])

    def outcomes(
        self,
        static: EvalStatic,
        inputs: EvalInputs,
        *,
        validation: "Evaluator | None" = None,
        keeps_logits: bool = False,
    ) -> tuple[list[Outcome], list[float | None]]:
        """What each run predicts for every image that could be read.

        Args:
          static, inputs: from `outcomes.make_evaluation`.
          validation: of images of the same classes to fit each run's temperature on.
          keeps_logits: whether `logits_read` is set.

        Returns:
          Of each run the outcomes, and its temperature: `None` without validation images that could be read, or where
          they fit none (`fit_temperature`).
        """
        inputs = encode_texts(static, inputs)
        fitted: list[float | None] = [None] * static.runs
        if validation is not None:
            fitted = validation._temperatures(static, inputs)
        temperatures = np.asarray([1.0 if value is None else value for value in fitted], np.float32)
        compute = outcomes_and_logits if keeps_logits else outcomes
        values, labels = self._each_batch(compute, static, inputs, temperatures, labelled=True)
        read = labels >= 0
        if not read.any():
            raise ClipbiasError("none of the images to evaluate on could be read.")
        whole = jax.tree.map(lambda *batches: np.concatenate(batches, axis=1), *values)
        whole, scores = whole if keeps_logits else (whole, None)
        self.logits_read = None if scores is None else (scores[:, read], labels[read])
        self.predicted = np.where(read, whole.predicted, -1)[:, : len(self.split)].astype(np.int32)
        self.log_probs = whole.log_probs[:, : len(self.split)]
        every = jax.tree.map(lambda values: values[:, read], whole)
        check_finite(every.highest)
        correct = every.predicted == labels[read]
        results = [
            Outcome(
                correct[run],
                every.other_odds[run],
                every.highest[run],
                None if fitted[run] is None else every.other_odds_at[run],
            )
            for run in range(static.runs)
        ]
        return results, fitted

    def validate(self, static: EvalStatic, inputs: EvalInputs, *, finite: bool = True) -> list[Row]:
        """How well each run does on these images, to select one by; arguments as in `outcomes`.

        Args:
          static, inputs: of the runs.
          finite: whether runs are refused whose logits are not finite; else their loss is not finite.

        Returns:
          For each run `{"accuracy", "correct", "images", "loss"}`: top-1 accuracy in percent, the counts behind it, and
          the mean cross-entropy in nats.
        """
        inputs = encode_texts(static, inputs)
        values, labels = self._each_batch(correct_and_loss, static, inputs, labelled=True)
        read = labels >= 0
        if not read.any():
            raise ClipbiasError("none of the validation images could be read.")
        correct, loss = (np.concatenate(batches, axis=1)[:, read] for batches in zip(*values, strict=True))
        if finite:
            check_finite(loss)
        images = int(read.sum())
        return [
            {
                "accuracy": 100 * int(of_run.sum()) / images,
                "correct": int(of_run.sum()),
                "images": images,
                "loss": float(loss[run].mean(dtype=np.float64)),
            }
            for run, of_run in enumerate(correct)
        ]

    def pseudo_labels(self, static: EvalStatic, inputs: EvalInputs) -> tuple[np.ndarray, np.ndarray]:
        """The class that a single run takes each image for, int32 `[n]`, and the odds of the other classes.

        They are `Outcome.other_odds`. An image that could not be read has the class -1.
        """
        inputs = encode_texts(static, inputs)
        values, labels = self._each_batch(outcomes, static, inputs, np.ones(1, np.float32), labelled=True)
        every = jax.tree.map(lambda *batches: np.concatenate(batches, axis=1)[0], *values)
        count = len(self.split)
        return np.where(labels < 0, -1, every.predicted)[:count].astype(np.int32), every.other_odds[:count]

    def _temperatures(self, static: EvalStatic, inputs: EvalInputs) -> list[float | None]:
        """The temperature that these images ask for, for each run; `None` where there is none."""
        values, labels = self._each_batch(logits, static, inputs)
        read = labels >= 0
        if not read.any():
            return [None] * static.runs
        scores = np.concatenate(values, axis=1)[:, read]
        check_finite(scores)
        return [fit_temperature(of_run, labels[read]) for of_run in scores]

    def logits(self, static: EvalStatic, inputs: EvalInputs) -> tuple[np.ndarray, np.ndarray]:
        """The logits of every image under each run, `[R, n, C]`, and which images could be read, bool `[n]`."""
        values, labels = self._each_batch(logits, static, encode_texts(static, inputs))
        count = len(self.split)
        read = (labels >= 0)[:count]
        if not read.any():
            raise ClipbiasError("none of the images could be read.")
        scores = np.concatenate(values, axis=1)[:, :count]
        check_finite(scores[:, read])
        return scores, read

    def accuracy(self, static: EvalStatic, inputs: EvalInputs, *, validation: "Evaluator | None" = None) -> list[Row]:
        """Top-1 accuracy in percent of each run, with the counts behind it; arguments as in `outcomes`.

        Returns:
          For each run `{"accuracy", "correct", "images", "calibration"}`.
        """
        results, fitted = self.outcomes(static, inputs, validation=validation)
        return [score(outcome, temperature) for outcome, temperature in zip(results, fitted, strict=True)]


def first_run(learnables: Learnables) -> Learnables:
    """The learnables of the first run."""
    return jax.tree.map(lambda leaf: leaf[0], learnables)


def encode_texts(static: EvalStatic, inputs: EvalInputs) -> EvalInputs:
    """The inputs with features in place of texts; texts that depend on the image are encoded with each batch."""
    if static.classifier.method.conditional:
        return inputs
    if static.classifier.changes_text(first_run(inputs.learnables)):
        with explain_exhaustion("lower --config.eval_batch_size."):
            return dataclasses.replace(inputs, text=text_features(static, inputs))
    assert isinstance(inputs.text, jax.Array), "texts that no learnable changes were encoded once"
    return dataclasses.replace(inputs, text=inputs.text[None])


def score(outcome: Outcome, temperature: float | None) -> Row:
    """Top-1 accuracy in percent with the counts behind it, and how well calibrated the confidence is."""
    correct = int(outcome.correct.sum())
    images = len(outcome.correct)
    # A rounding error of a device is no difference between two runs.
    calibrated = {name: round(value, 4) for name, value in calibration(outcome, temperature).items()}
    return {"accuracy": 100 * correct / images, "correct": correct, "images": images, "calibration": calibrated}
