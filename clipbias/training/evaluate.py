"""Evaluates tuned models on a split: from towers to predictions, accuracy, scores by class and calibration.

All runs of a job are evaluated at once, as compiled functions; features that they share are kept. Predictions are
stored in a file beside the results, by their identity. `Predictor` answers for one model.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from clipbias import hosts
from clipbias.clip.layers import no_gradient
from clipbias.clip.params import Params
from clipbias.clip.precision import cast_weights
from clipbias.clip.preprocess import Preprocessing
from clipbias.data import Split
from clipbias.data.confusion import class_summary
from clipbias.data.images import Images, Workers
from clipbias.data.pipeline import Batch
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from clipbias.io import load_arrays, save_arrays
from clipbias.training import mesh as meshes
from clipbias.training.batches import split_batches
from clipbias.training.calibration import Outcome, calibration, detection, fit_temperature, temperature_images
from clipbias.training.device import explain_exhaustion
from clipbias.training.spec import Row
from clipbias.training.step import over_runs, place_text
from clipbias.tuning import Task
from clipbias.tuning.conformal import AnswerRule, measure
from clipbias.tuning.features import unit_length
from clipbias.tuning.method import Learnables, crops_of, mixes_crops, stack_runs
from clipbias.tuning.task import Classifier, Text
from clipbias.tuning.tuned import Tuned


@dataclasses.dataclass(frozen=True)
class EvalStatic:
    """What never changes in an evaluation of `R = runs` runs. Hashable: those with equal ones share compiled programs.

    Images come normalised where `preprocessing` is `None`; `mesh` is `None` for a single device.
    """

    classifier: Classifier
    preprocessing: Preprocessing | None
    mesh: Mesh | None
    runs: int


@struct.dataclass
class EvalInputs:
    """Inputs that stay constant over an evaluation, on the mesh; learnables have the leading axis `R`.

    `text` stands for the classes. `logits` takes features `[R, S · C, d]`, or `[1, S · C, d]` that runs share, or the
    texts themselves where they depend on the image.
    """

    params: Params
    learnables: Learnables
    text: Text


def make_evaluation(
    task: Task, params: Params, learnables: Learnables, *, runs: int, mesh: Mesh
) -> tuple[EvalStatic, EvalInputs]:
    """The arguments of an evaluation of `runs` runs, with weights on the mesh and learnables `[R, …]` on the host."""
    static = EvalStatic(task.classifier, task.clip.preprocessing, mesh, runs)
    placed = meshes.device_put(mesh, learnables, meshes.RUN)
    return static, EvalInputs(params, placed, place_text(mesh, task, params))


def images_per_step(batch_size: int, crops: int, mesh: Mesh) -> int:
    """Images that an evaluation step takes: with `crops` of each, so many fewer, but one for each device at least."""
    return meshes.rows(mesh, max(1, batch_size // (1 + crops)))


@functools.partial(jax.jit, static_argnames="static")
def text_features(static: EvalStatic, inputs: EvalInputs) -> jax.Array:
    """The text tower's features under `R` runs, `[R, S · C, d]`: computed once per evaluation."""
    classifier = dataclasses.replace(static.classifier, remat=no_gradient)

    def of_run(learnables: Learnables) -> jax.Array:
        return classifier.encode_text(inputs.params, classifier.method.adapt(learnables), inputs.text)

    return over_runs(of_run, (0,), runs=static.runs)(inputs.learnables)


@functools.partial(jax.jit, static_argnames="static")
def image_features(static: EvalStatic, params: Params, learnables: Learnables, images: jax.Array) -> jax.Array:
    """Features of images `[B, size, size, 3]` under `R` runs, `[R, B, d]`; of views `[B, 1 + V, …]` `[R, B, 1 + V, d]`.

    Images have levels from 0 to 255, unless they come normalised.
    """
    classifier = dataclasses.replace(static.classifier, remat=no_gradient)
    if static.preprocessing is not None:
        images = static.preprocessing.normalize(images)

    def of_run(learnables: Learnables) -> jax.Array:
        return classifier.encode_images(params, classifier.method.adapt(learnables), images)

    return over_runs(of_run, (0,), runs=static.runs, mesh=static.mesh)(learnables)


@struct.dataclass
class BatchOutcome:
    """What each run predicts for a batch of images, every leaf `[R, B]`; see `calibration.Outcome`.

    `log_probs`, `[R, B, 7]`, has the five largest log-probabilities (-inf beyond the last class), the label's, and the
    log-sum-exp of the logits: logits are log-probabilities plus the log-sum-exp, but the half precision of files keeps
    differences between sure predictions only in this form. `logits`, if they are kept, are `[R, B, C]`.
    """

    predicted: jax.Array
    other_odds: jax.Array
    highest: jax.Array
    other_odds_at: jax.Array
    log_probs: jax.Array
    logits: jax.Array | None = None


@functools.partial(jax.jit, static_argnames="static")
def logits(static: EvalStatic, inputs: EvalInputs, images: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The logits under each run, `[R, B, C]`, from features of the texts in `inputs`.

    `images` are features `[R, B, d]`, or `[1, B, d]` that are the same for all runs. `mask [B]` is false for rows that
    only fill the batch.
    """
    classifier = static.classifier
    conditional = static.classifier.method.conditional

    def of_run(learnables: Learnables, image: jax.Array, text: jax.Array) -> jax.Array:
        if conditional:
            adaptation = classifier.method.adapt(learnables)
            text = classifier.encode_text_for(inputs.params, learnables, adaptation, image, inputs.text)
        return classifier.head(inputs.params, learnables, image, text, mask)

    features = images if conditional else jnp.asarray(inputs.text)
    images, features = (jnp.broadcast_to(x, (static.runs, *x.shape[1:])) for x in (images, features))
    return over_runs(of_run, (0, 0, 0), runs=static.runs)(inputs.learnables, images, features)


@functools.partial(jax.jit, static_argnames="static")
def correct_and_loss(
    static: EvalStatic, inputs: EvalInputs, images: jax.Array, mask: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Whether the most likely class of each image is its label, and the label's `-log p`, `[R, B]` each.

    Arguments as of `logits`; the results of a label -1 mean nothing.
    """
    scores = logits(static, inputs, images, mask).astype(jnp.float32)
    index = jnp.maximum(labels, 0)[None, :, None]
    loss = jax.nn.logsumexp(scores, axis=-1) - jnp.take_along_axis(scores, index, axis=-1)[..., 0]
    return scores.argmax(-1) == labels, loss


@functools.partial(jax.jit, static_argnames=("static", "keeps_logits"))
def outcomes(
    static: EvalStatic,
    inputs: EvalInputs,
    images: jax.Array,
    mask: jax.Array,
    labels: jax.Array,
    temperatures: jax.Array,
    keeps_logits: bool = False,
) -> BatchOutcome:
    """The most likely class under each run and how sure it is, as is and with logits over `temperatures [R]`.

    Arguments as of `logits`; the log-probability of a label -1 means nothing.
    """
    scores = logits(static, inputs, images, mask)
    predicted = scores.argmax(-1)
    highest = scores.max(-1)
    below = (scores - highest[..., None]).astype(jnp.float32)
    others = predicted[..., None] != jnp.arange(scores.shape[-1])

    def other_odds(below: jax.Array) -> jax.Array:
        return jnp.where(others, jnp.exp(below), 0).sum(-1)

    other_odds_at = other_odds(below / temperatures[:, None, None])
    plain = other_odds(below)
    total = jnp.log1p(plain)[..., None]  # log-sum-exp less the largest logit
    of_label = jnp.take_along_axis(below, jnp.maximum(labels, 0)[None, :, None], axis=-1)
    five = jax.lax.top_k(below, min(5, below.shape[-1]))[0]
    five = jnp.pad(five, ((0, 0), (0, 0), (0, 5 - five.shape[-1])), constant_values=-jnp.inf)
    highest = highest.astype(jnp.float32)
    log_probs = jnp.concatenate([five - total, of_label - total, highest[..., None] + total], axis=-1)
    return BatchOutcome(
        predicted=predicted.astype(jnp.int32),
        other_odds=plain,
        highest=highest,
        other_odds_at=other_odds_at,
        log_probs=log_probs,
        logits=scores if keeps_logits else None,
    )


def check_finite(logits: np.ndarray) -> None:
    """Raises `ClipbiasError` where logits are not numbers; the largest would still count as a prediction."""
    if not np.isfinite(logits).all():
        raise ClipbiasError(
            "what is computed for the images is not finite: what was learned is too large; tune again with a lower "
            "--config.learning_rate."
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `R` runs predict for the `n` images of a split, of which `m` could be read.

    Attributes:
      outcomes: of each run, for the images that could be read.
      temperatures: of each run, or `None` (`Evaluator.evaluate`).
      validation_images: how many they were fitted on; `None` where none was to be fitted.
      predicted: the class of every image, int32 `[R, n]`; -1 where it could not be read.
      log_probs: see `BatchOutcome`, float16 `[R, n, 7]`.
      logits: of the images that could be read, `[R, m, C]`, if they are kept.
    """

    outcomes: list[Outcome]
    temperatures: list[float | None]
    validation_images: int | None
    predicted: np.ndarray
    log_probs: np.ndarray
    logits: np.ndarray | None

    @property
    def skipped(self) -> int:
        return int((self.predicted[0] < 0).sum())

    @property
    def scores(self) -> list[Row]:
        """Of each run `{"accuracy", "correct", "images", "calibration"}`, the accuracy in percent."""
        rows = [score(*pair) for pair in zip(self.outcomes, self.temperatures, strict=True)]
        for row in rows if self.validation_images is not None else ():
            row["calibration"]["validation_images"] = self.validation_images
        return rows


class Budget:
    """Bytes that evaluators may keep together. Requests depend on numbers of images alone: all processes agree."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def take(self, count: int) -> bool:
        fits = count <= self._left
        self._left -= count if fits else 0
        return fits

    def clear(self) -> None:
        self._left = self._limit


class Evaluator:
    """Evaluates runs on one split, and keeps what does not depend on the run.

    Image features under a method that leaves images alone are the same for all of them: they are computed once. Decoded
    and resized images, and features, are kept if they fit the budget.
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
        """Batches are of all devices, rounded to a multiple of the `data` axis; nothing is kept without a budget.

        With `whole_batches` fewer images are padded to a batch, so that another split's program serves.
        """
        if len(split) == 0:
            raise ClipbiasError("there is no image to evaluate on; check the data folder and the class selection.")
        self.split = split
        self.mesh = mesh
        self.on_error = on_error
        self.batch_size = meshes.rows(mesh, batch_size if whole_batches else min(batch_size, len(split)))
        self._workers = Workers.of(workers)
        self._budget = budget or Budget(0)
        self._images: list[Batch] | None = None
        self._fits: dict[Hashable, bool] = {}
        # By what they depend on besides the image: patches, number of crops, whether crops are mixed. With batches
        # without images.
        self._plain_features: dict[tuple[bool, int, bool], list[tuple[jax.Array, Batch]]] = {}

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
        batches = split_batches(
            self.split,
            self.mesh,
            resizing=static.preprocessing.resizing,
            batch_size=images_per_step(self.batch_size, crops, self.mesh),
            crops=crops,
            mixed=mixes_crops(method),
            on_error=self.on_error,
            workers=self._workers,
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
        self, static: EvalStatic, inputs: EvalInputs, compute: Callable[[jax.Array, jax.Array, jax.Array], Any]
    ) -> tuple[Any, np.ndarray]:
        """The results of `compute(features, mask, labels)` batch by batch, `[R, n, …]` of all images, on the host.

        And the labels `[n]`, -1 where an image could not be read.
        """
        results = []
        with explain_exhaustion("lower --config.eval_batch_size."):
            for features, batch in self._features(static, inputs):
                if hosts.stops():
                    raise hosts.Stopped
                mask = meshes.place_rows(self.mesh, batch["mask"])
                labels = meshes.place_rows(self.mesh, np.where(batch["mask"], batch["labels"], -1))
                results.append((compute(features, mask, labels), labels))
                # One batch waits behind the one that is computed: with dozens of them, XLA's CPU devices hang.
                jax.block_until_ready(results[-2:-1])
        values, of_batches = zip(*meshes.device_get(results), strict=True)
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
    ) -> Evaluation:
        """What each run predicts for every image, and its temperature.

        That is fitted on the images of `validation`, of the same classes; `None` without any that could be read, or
        where they fit none (`fit_temperature`).
        """
        inputs = encode_texts(static, inputs)
        fitted: list[float | None] = [None] * static.runs
        validation_images = None
        if validation is not None:
            scores, labels = validation._logits(static, inputs)
            read = labels >= 0
            validation_images = int(read.sum())
            fitted = [fit_temperature(of_run[read], labels[read]) for of_run in scores]
        temperatures = np.asarray([1.0 if value is None else value for value in fitted], np.float32)

        def compute(features: jax.Array, mask: jax.Array, labels: jax.Array) -> BatchOutcome:
            return outcomes(static, inputs, features, mask, labels, temperatures, keeps_logits=keeps_logits)

        values, labels = self._each_batch(static, inputs, compute)
        read = labels >= 0
        if not read.any():
            raise ClipbiasError("none of the images to evaluate on could be read.")
        every = jax.tree.map(lambda values: values[:, read], values)
        check_finite(every.highest)
        with np.errstate(over="ignore"):  # on the host: not every CPU has the instruction that XLA takes for it
            log_probs = values.log_probs.astype(np.float16)
        return Evaluation(
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
        """Of each run `{"accuracy", "correct", "images", "loss"}`: in percent, counts, and mean cross-entropy in nats.

        Without `finite` a run whose logits are not finite has a loss that is not finite.
        """
        inputs = encode_texts(static, inputs)
        (correct, loss), labels = self._each_batch(
            static, inputs, lambda *batch: correct_and_loss(static, inputs, *batch)
        )
        read = labels >= 0
        if not read.any():
            raise ClipbiasError("none of the validation images could be read.")
        correct, loss = correct[:, read], loss[:, read]
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

    def logits(self, static: EvalStatic, inputs: EvalInputs) -> tuple[np.ndarray, np.ndarray]:
        """The logits of every image under each run, `[R, n, C]`, and which images could be read, bool `[n]`."""
        scores, labels = self._logits(static, encode_texts(static, inputs))
        if labels.max() < 0:
            raise ClipbiasError("none of the images could be read.")
        return scores, labels >= 0

    def _logits(self, static: EvalStatic, inputs: EvalInputs) -> tuple[np.ndarray, np.ndarray]:
        scores, labels = self._each_batch(
            static, inputs, lambda features, mask, _: logits(static, inputs, features, mask)
        )
        check_finite(scores[:, labels >= 0])
        return scores, labels


# How the images of a temperature are read: one that is broken is no reason to lose a result, and the program is that of
# the images that are evaluated.
TEMPERATURE = {"on_error": "skip", "whole_batches": True}


def first_run(learnables: Learnables) -> Learnables:
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
    correct = int(outcome.correct.sum())
    images = len(outcome.correct)
    # A rounding error of a device is no difference between two runs.
    calibrated = {name: round(value, 4) for name, value in calibration(outcome, temperature).items()}
    return {"accuracy": 100 * correct / images, "correct": correct, "images": images, "calibration": calibrated}


def evaluate(
    model: Tuned,
    split: Split,
    *,
    mesh: Mesh,
    eval_batch_size: int,
    on_image_error: str,
    workers: int | None = None,
    validation: Split | None = None,
    outside: Split | None = None,
    rule: AnswerRule | None = None,
) -> tuple[Row, np.ndarray]:
    """Top-1 accuracy of a tuned model, its calibration, and how well it tells other images apart.

    A temperature is fitted on some validation images (`calibration.temperature_images`). Labels of images outside are
    not looked at. The rule makes prediction sets and rejections. The batch size is that of all devices.

    Returns:
      `{"accuracy", "correct", "images", "calibration", "class_summary"}` (`data.confusion`), with `skipped_images` if
      any, with a rule `answers` (`conformal.measure`), and with images outside `ood` (`calibration.detection`), where
      `accepted` is the share in percent that the rule does not reject. And the class that is predicted for every image,
      int32 `[n]`; -1 where one could not be read.
    """
    task = model.task.with_memory(class_shards=mesh.shape[meshes.DATA])
    params = meshes.place_weights(mesh, task.clip.params, task.classifier.dtype)
    single = stack_runs([jax.device_get(model.learnables)])
    static, inputs = make_evaluation(task, params, single, runs=1, mesh=mesh)
    shared = Workers(workers)

    def on(images: Split, batch_size: int = eval_batch_size, **options: Any) -> Evaluator:
        options = {"on_error": on_image_error, **options}
        return Evaluator(images, mesh=mesh, batch_size=batch_size, workers=shared, **options)

    tested = on(split)
    others = temperature_images(split, validation)
    fits = None if others is None else on(others, tested.batch_size, **TEMPERATURE)
    keeps_logits = rule is not None
    inside = tested.evaluate(static, inputs, validation=fits, keeps_logits=keeps_logits)
    predicted = inside.predicted[0]
    (scores,) = inside.scores
    scores["class_summary"] = class_summary(split.labels, predicted, task.class_names)
    if inside.skipped:
        scores["skipped_images"] = inside.skipped
    if rule is not None and inside.logits is not None:
        scores["answers"] = measure(rule, inside.logits[0], split.labels[predicted >= 0])
    if outside is not None:
        away = on(outside).evaluate(static, inputs, keeps_logits=keeps_logits)
        (other,) = away.outcomes
        scores["ood"] = {"images": len(other.other_odds), **detection(inside.outcomes[0], other)}
        if rule is not None and away.logits is not None:
            scores["ood"]["accepted"] = 100 * float((~rule.rejected(away.logits[0])).mean())
    return scores, predicted


# Predictions in files.

FOLDER = "predictions"


def predictions_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def predictions_identity(model: Tuned, images: str) -> str:
    """Names predictions by all that they depend on: the tuned model, and images and labels by their identity."""
    return identity([model.identity, images])


def save_predictions(
    workdir: Path,
    name: str,
    model: Tuned,
    split: Split,
    predicted: np.ndarray,
    log_probs: np.ndarray | None = None,
    *,
    images: str | None = None,
) -> str:
    """Writes `predictions/NAME.npz` of a run's folder, atomically, and returns the identity of the predictions.

    `images` is the split's identity, where it is known. The file holds "images" (names), "labels", "predicted" (-1
    where an image could not be read), "class_names", of a sweep's runs "log_probs" (`BatchOutcome`), and "identity", by
    which predictions are found again.
    """
    known_by = predictions_identity(model, images or split.identity)
    path = workdir / FOLDER / f"{predictions_name(name)}.npz"
    arrays = {
        "images": np.asarray(split.keys),
        "labels": np.asarray(split.labels, np.int32),
        "predicted": np.asarray(predicted, np.int32),
        "class_names": np.asarray(model.class_names),
        "identity": np.asarray(known_by),
    }
    save_arrays(path, arrays if log_probs is None else {**arrays, "log_probs": log_probs})
    return known_by


class KnownPredictions:
    """Those in the folders of runs, by identity. What is damaged counts as not there."""

    def __init__(self, workdirs: Iterable[Path]) -> None:
        self._paths: dict[str, Path] = {}
        for workdir in workdirs:
            for path in sorted((workdir / FOLDER).glob("*.npz")):
                if (stored := stored_identity(path)) is not None:
                    self._paths.setdefault(stored, path)

    def find(self, model: Tuned, split: Split) -> np.ndarray | None:
        """The class number that was predicted for every image, int32 `[n]`, -1 where one could not be read.

        `None` where nothing with exactly this model and these images is known.
        """
        path = self._paths.get(predictions_identity(model, split.identity)) if self._paths else None
        predicted = None if path is None else _read(path, "predicted")
        if predicted is None or predicted.shape != (len(split),) or predicted.dtype != np.int32:
            return None
        return predicted if predicted.min() >= -1 and predicted.max() < len(model.class_names) else None


def stored_identity(path: Path) -> str | None:
    """The identity of predictions in a file; `None` where there are none, or the file is damaged."""
    stored = _read(path, "identity")
    return None if stored is None or stored.ndim else str(stored)


def _read(path: Path, name: str) -> np.ndarray | None:
    try:
        return load_arrays(path, name)[name]
    except ClipbiasError:
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A tuned model on a device, ready for batches of images: its texts are encoded once."""

    static: EvalStatic
    inputs: EvalInputs

    @classmethod
    def of(cls, model: Tuned, params: Params | None = None, learnables: Learnables | None = None) -> "Predictor":
        """On weights, and with learnables, that are placed already; by default on JAX's first device."""
        task = model.task
        learnables = model.learnables if learnables is None else learnables
        if params is None:
            params = cast_weights(jax.device_put(task.clip.params), task.classifier.dtype)
        text: Text = task.text
        if not task.method.conditional:
            text = task.text_features(params, learnables)[None]
        static = EvalStatic(task.classifier, task.clip.preprocessing, mesh=None, runs=1)
        run = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], learnables)
        return cls(static, EvalInputs(params, run, text))

    @property
    def text(self) -> Text:
        """Features of the texts `[S · C, d]`, as `task.logits` takes them; the texts where they depend on the image."""
        return self.inputs.text[0] if isinstance(self.inputs.text, jax.Array) else self.inputs.text

    def logits(self, images: jax.Array | np.ndarray, mask: jax.Array | np.ndarray | None = None) -> jax.Array:
        """Logits `[B, C]` of images with levels from 0 to 255, `[B, R, R, 3]`, or views of each `[B, 1 + V, R, R, 3]`.

        `mask [B]` says which of the images count; the others only fill the batch.
        """
        return self.logits_and_features(images, mask)[0]

    def logits_and_features(
        self, images: jax.Array | np.ndarray, mask: jax.Array | np.ndarray | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`logits`, and the features of the images, of unit length, `[B, d]`."""
        mask = np.ones(len(images), bool) if mask is None else mask
        return _logits_and_features(self.static, self.inputs, images, mask)

    def classify(
        self, images: jax.Array | np.ndarray, mask: np.ndarray, *, normalised: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The softmax of `logits`, and these; images may come normalised. Raises `ClipbiasError` for infinite ones."""
        static = dataclasses.replace(self.static, preprocessing=None) if normalised else self.static
        scores, _ = _logits_and_features(static, self.inputs, images, mask)
        logits = np.asarray(scores)
        check_finite(logits[mask].max(-1))
        return np.asarray(jax.nn.softmax(scores, axis=-1)), logits


@functools.partial(jax.jit, static_argnames="static")
def _logits_and_features(
    static: EvalStatic, inputs: EvalInputs, images: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    features = image_features(static, inputs.params, inputs.learnables, images)
    whole = unit_length(static.classifier.whole_image_features(features[0]))
    return logits(static, inputs, features, mask)[0], whole
