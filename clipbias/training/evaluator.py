"""Passes over the images of a split, for all runs of a job at once."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from clipbias import hosts
from clipbias.data import Split
from clipbias.data.confusion import class_summary
from clipbias.data.images import Images
from clipbias.data.pipeline import Batch
from clipbias.errors import ClipbiasError
from clipbias.training import forward, placement
from clipbias.training.batches import Reading
from clipbias.training.calibration import Outcome, calibration, fit_temperature
from clipbias.training.device import explain_exhaustion
from clipbias.training.forward import BatchPredictions, EvalInputs, EvalStatic, check_finite, encode_texts
from clipbias.training.spec import Row
from clipbias.tuning.method import crops_of, mixes_crops, select_run


def _accuracy(correct: np.ndarray) -> Row:
    count, images = int(correct.sum()), len(correct)
    return {"accuracy": 100 * count / images, "correct": count, "images": images}


def score(outcome: Outcome, temperature: float | None) -> Row:
    # Rounded, so that equal runs on two devices, which differ in their last bits, have equal rows.
    calibrated = {name: round(value, 4) for name, value in calibration(outcome, temperature).items()}
    return {**_accuracy(outcome.correct), "calibration": calibrated}


@dataclasses.dataclass(frozen=True)
class RunPredictions:
    """Predictions of `R` runs for the `n` images of a split, of which `m` are readable.

    Attributes:
      outcomes: of each run, for readable images.
      temperatures: of each run, with the number of images that fitted them; `None` where none fits.
      predicted: class of every image, int32 `[R, n]`; -1 for an unreadable one.
      log_probs: see `BatchPredictions`, float16 `[R, n, 7]`.
      logits: of readable images, `[R, m, C]`, if they are kept.
    """

    outcomes: list[Outcome]
    temperatures: list[float | None]
    validation_images: int | None
    predicted: np.ndarray
    log_probs: np.ndarray
    logits: np.ndarray | None

    def scores(self, labels: np.ndarray, class_names: Sequence[str]) -> list[Row]:
        """Returns `score` of each run with the `class_summary`, and the number of `skipped_images` if there are any."""
        rows = []
        for outcome, temperature, predicted in zip(self.outcomes, self.temperatures, self.predicted, strict=True):
            row = score(outcome, temperature) | {"class_summary": class_summary(labels, predicted, class_names)}
            if self.validation_images is not None:
                row["calibration"]["validation_images"] = self.validation_images
            if skipped := int((predicted < 0).sum()):
                row["skipped_images"] = skipped
            rows.append(row)
        return rows


class Budget:
    """Bytes that evaluators may keep together. Requests depend on numbers of images alone, so all processes agree."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, count: int) -> bool:
        fits = count <= self._left
        self._left -= count if fits else 0
        return fits


class Evaluator:
    """Evaluates runs on one split. Decoded images and features that runs share are kept if they fit the budget."""

    def __init__(
        self,
        split: Split | Images,
        reading: Reading,
        *,
        batch_size: int,
        budget: Budget | None = None,
        whole_batches: bool = False,
    ) -> None:
        """Makes nothing yet. The batch size is that of all devices, to which `whole_batches` pads fewer images."""
        if len(split) == 0:
            raise ClipbiasError("there is no image to evaluate on; check the data folder and the class selection.")
        self.split = split
        self.mesh = reading.mesh
        self.batch_size = placement.rows(self.mesh, batch_size if whole_batches else min(batch_size, len(split)))
        self._reading = reading
        self._budget = budget or Budget(0)
        self._images: list[Batch] | None = None
        self._fits: dict[Hashable, bool] = {}
        # Plain CLIP's features with labels and masks, by all that they depend on besides the image: patches, number of
        # crops, whether crops are mixed.
        self._plain_features: dict[tuple[bool, int, bool], list[tuple[jax.Array, Batch]]] = {}

    def for_temperature(self, split: Split) -> "Evaluator":
        # A broken image among them must not cost the result. Whole batches of the same size use the same program, where
        # few images alone would have another shape.
        reading = dataclasses.replace(self._reading, on_error="skip")
        return Evaluator(split, reading, batch_size=self.batch_size, budget=self._budget, whole_batches=True)

    def _may_keep(self, name: Hashable, bytes_per_image: int) -> bool:
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
        batches = self._reading.batches(
            self.split,
            resizing=static.preprocessing.resizing,
            batch_size=forward.images_per_step(self.batch_size, crops, self.mesh),
            crops=crops,
            mixed=mixes_crops(method),
        )
        images = list[Batch]()
        keep = not crops and self._may_keep("images", 3 * static.classifier.config.vision.image_size**2)
        for batch in batches:
            if keep:
                images.append(batch)
            yield batch
        if keep:
            self._images = images

    def _features(self, static: EvalStatic, inputs: EvalInputs) -> Iterator[tuple[jax.Array, Batch]]:
        classifier = static.classifier
        method = classifier.method
        learnables = inputs.learnables
        changes = classifier.changes_vision(select_run(learnables, 0))
        crops = crops_of(method)
        config = classifier.config
        key = method.patches, crops, mixes_crops(method)
        if not changes and key in self._plain_features:
            yield from self._plain_features[key]
            return
        # Features, 2 kB an image, are kept before pixels, 150 kB: a method that leaves the tower alone needs no other.
        per_image = 1 + (config.vision.patches if method.patches else crops)
        keep = not changes and self._may_keep(key, 4 * per_image * config.projection_width)
        if not changes:
            # No learnable of the run reaches the vision tower, so the features of the first run serve all, and other
            # methods too.
            learnables = jax.tree.map(lambda leaf: leaf[:1], learnables)
            static = dataclasses.replace(static, runs=1)
        plain = []
        for batch in self._batches(static):
            images = placement.place_rows(self.mesh, batch["images"])
            features = forward.image_features(static, inputs.params, learnables, images)
            if keep:
                plain.append((features, {name: batch[name] for name in ("labels", "mask")}))
            yield features, batch
        if plain:
            self._plain_features[key] = plain

    def _each_batch(
        self, static: EvalStatic, inputs: EvalInputs, compute: Callable[[jax.Array, jax.Array, jax.Array], Any]
    ) -> tuple[Any, np.ndarray]:
        """Returns `compute(features, mask, labels)` of all images, `[R, n, …]`, and labels `[n]`, -1 if unreadable."""
        results = []
        with explain_exhaustion("lower --config.eval_batch_size."):
            for features, batch in self._features(static, inputs):
                if hosts.stops():
                    raise hosts.Stopped
                mask = placement.place_rows(self.mesh, batch["mask"])
                labels = placement.place_rows(self.mesh, np.where(batch["mask"], batch["labels"], -1))
                results.append((compute(features, mask, labels), labels))
                # One batch waits behind the one that is computed: with dozens of them, XLA's CPU devices hang.
                jax.block_until_ready(results[-2:-1])
        # Fetched together: a fetch for each batch would be an exchange between processes each time.
        values, of_batches = zip(*placement.device_get(results), strict=True)
        count = len(self.split)  # padding lies behind the images
        whole = jax.tree.map(lambda *batches: np.concatenate(batches, axis=1)[:, :count], *values)
        return whole, np.concatenate(of_batches)[:count]

    def evaluate(
        self,
        static: EvalStatic,
        inputs: EvalInputs,
        *,
        validation: "Evaluator | None" = None,
        keeps_logits: bool = False,
    ) -> RunPredictions:
        """Predicts all images, and fits each run's temperature on the images of `validation`, of the same classes."""
        # Texts once for all images. Temperatures before the images: the program of a batch takes them as an argument.
        inputs = encode_texts(static, inputs)
        fitted: list[float | None] = [None] * static.runs
        validation_images = None
        if validation is not None:
            scores, labels = validation._logits(static, inputs)
            read = labels >= 0
            validation_images = int(read.sum())
            fitted = [fit_temperature(of_run[read], labels[read]) for of_run in scores]
        # 1 where nothing is fitted, and its result is not read: one program serves both cases.
        temperatures = np.asarray([1.0 if value is None else value for value in fitted], np.float32)

        def compute(features: jax.Array, mask: jax.Array, labels: jax.Array) -> BatchPredictions:
            return forward.outcomes(static, inputs, features, mask, labels, temperatures, keeps_logits=keeps_logits)

        values, labels = self._each_batch(static, inputs, compute)
        read = labels >= 0
        if not read.any():
            raise ClipbiasError("none of the images to evaluate on could be read.")
        every = jax.tree.map(lambda values: values[:, read], values)
        # NaN and infinity pass through the maximum over classes.
        check_finite(every.highest)
        # On the host: XLA's conversion to float16 needs an instruction that not every CPU has. A log-probability below
        # its range becomes -inf.
        with np.errstate(over="ignore"):
            log_probs = values.log_probs.astype(np.float16)
        return RunPredictions(
            outcomes=[
                Outcome(
                    correct=every.predicted[run] == labels[read],
                    other_odds=every.other_odds[run],
                    highest=every.highest[run],
                    other_odds_at=None if temperature is None else every.other_odds_at[run],
                )
                for run, temperature in enumerate(fitted)
            ],
            temperatures=fitted,
            validation_images=validation_images,
            predicted=np.where(read, values.predicted, -1).astype(np.int32),
            log_probs=log_probs,
            logits=every.logits,
        )

    def validate(self, static: EvalStatic, inputs: EvalInputs, *, finite: bool = True) -> list[Row]:
        """Returns `{"accuracy", "correct", "images", "loss"}` of each run: percent, counts, mean cross-entropy."""
        inputs = encode_texts(static, inputs)
        # No temperature and no calibration: fewer results leave the device, and no program of `evaluate` is compiled.
        (correct, loss), labels = self._each_batch(
            static, inputs, lambda *batch: forward.correct_and_loss(static, inputs, *batch)
        )
        read = labels >= 0
        if not read.any():
            raise ClipbiasError("none of the validation images could be read.")
        correct, loss = correct[:, read], loss[:, read]
        if finite:
            check_finite(loss)
        return [
            {**_accuracy(of_run), "loss": float(losses.mean(dtype=np.float64))}
            for of_run, losses in zip(correct, loss, strict=True)
        ]

    def logits(self, static: EvalStatic, inputs: EvalInputs) -> tuple[np.ndarray, np.ndarray]:
        """Returns the logits of every image in each run, `[R, n, C]`, and which images are readable, bool `[n]`."""
        scores, labels = self._logits(static, encode_texts(static, inputs))
        if labels.max() < 0:
            raise ClipbiasError("none of the images could be read.")
        return scores, labels >= 0

    def _logits(self, static: EvalStatic, inputs: EvalInputs) -> tuple[np.ndarray, np.ndarray]:
        scores, labels = self._each_batch(
            static, inputs, lambda features, mask, _: forward.logits(static, inputs, features, mask)
        )
        check_finite(scores[:, labels >= 0])
        return scores, labels
