"""A tuned model on devices: its predictions for batches of images, and its scores on a split."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipbias.clip.params import Params
from clipbias.clip.precision import cast_weights
from clipbias.data import Split
from clipbias.data.images import Workers
from clipbias.training import placement
from clipbias.training.batches import Reading
from clipbias.training.calibration import detection, temperature_images
from clipbias.training.evaluator import Evaluator
from clipbias.training.forward import EvalInputs, EvalStatic, check_finite, image_features, logits, make_evaluation
from clipbias.training.spec import Row
from clipbias.tuning.conformal import AnswerRule, measure
from clipbias.tuning.features import unit_length
from clipbias.tuning.method import Learnables, stack_runs
from clipbias.tuning.task import Text
from clipbias.tuning.tuned import Tuned


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A tuned model on a device, with its texts encoded, for batches of images."""

    static: EvalStatic
    inputs: EvalInputs

    @classmethod
    def of(cls, model: Tuned, params: Params | None = None, learnables: Learnables | None = None) -> "Predictor":
        """Takes weights and learnables that lie on devices. Default: the model's own, on JAX's first device."""
        task = model.task
        learnables = model.learnables if learnables is None else learnables
        if params is None:
            params = cast_weights(jax.device_put(task.clip.params), task.classifier.dtype)
        # Text features once: batches then run the vision tower and the head alone.
        text: Text = task.text
        if not task.method.conditional:
            text = task.text_features(params, learnables)[None]
        static = EvalStatic(task.classifier, task.clip.preprocessing, mesh=None, runs=1)
        return cls(static, EvalInputs(params, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], learnables), text))

    @property
    def text(self) -> Text:
        """Text features `[S · C, d]`, as `task.logits` takes them; tokens where prompts depend on the image."""
        return self.inputs.text[0] if isinstance(self.inputs.text, jax.Array) else self.inputs.text

    def logits(self, pixels: jax.Array | np.ndarray, mask: jax.Array | np.ndarray | None = None) -> jax.Array:
        """Computes logits `[B, C]` of images `[B, R, R, 3]`, levels 0 to 255, or of views `[B, 1 + V, R, R, 3]`."""
        return self.logits_and_features(pixels, mask)[0]

    def logits_and_features(
        self, pixels: jax.Array | np.ndarray, mask: jax.Array | np.ndarray | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Computes `logits`, and the images' features of unit length, `[B, d]`."""
        mask = np.ones(len(pixels), bool) if mask is None else mask
        return _logits_and_features(self.static, self.inputs, pixels, mask)

    def classify(
        self, pixels: jax.Array | np.ndarray, mask: np.ndarray, *, normalised: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Computes probabilities and `logits`. Raises `ClipbiasError` where logits are not finite."""
        static = dataclasses.replace(self.static, preprocessing=None) if normalised else self.static
        scores, _ = _logits_and_features(static, self.inputs, pixels, mask)
        logits = np.asarray(scores)
        # Rows that only fill the batch may hold anything.
        check_finite(logits[mask].max(-1))
        return np.asarray(jax.nn.softmax(scores, axis=-1)), logits


@functools.partial(jax.jit, static_argnames="static")
def _logits_and_features(
    static: EvalStatic, inputs: EvalInputs, images: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    features = image_features(static, inputs.params, inputs.learnables, images)
    whole = unit_length(static.classifier.whole_image_features(features[0]))
    return logits(static, inputs, features, mask)[0], whole


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
    """Measures top-1 accuracy and calibration of a tuned model, and its detection of images `outside` its classes.

    Validation images fit a temperature; the rule makes prediction sets and rejections.

    Returns:
      `{"accuracy", "correct", "images", "calibration", "class_summary"}` (`data.confusion`), `skipped_images` if any,
      `answers` with a rule (`conformal.measure`), and `ood` with images outside (`calibration.detection`), of which the
      rule accepts `accepted` percent. And the predicted class of every image, int32 `[n]`; -1 for an unreadable one.
    """
    task = model.task.with_memory(class_shards=mesh.shape[placement.DATA])
    params = placement.place_weights(mesh, task.clip.params, task.classifier.dtype)
    static, inputs = make_evaluation(task, params, stack_runs([jax.device_get(model.learnables)]), runs=1, mesh=mesh)
    reading = Reading(mesh, on_image_error, Workers(workers))
    tested = Evaluator(split, reading, batch_size=eval_batch_size)
    others = temperature_images(split, validation)
    fits = None if others is None else tested.for_temperature(others)
    keeps_logits = rule is not None
    inside = tested.evaluate(static, inputs, validation=fits, keeps_logits=keeps_logits)
    predicted = inside.predicted[0]
    (scores,) = inside.scores(split.labels, task.class_names)
    if rule is not None and inside.logits is not None:
        scores["answers"] = measure(rule, inside.logits[0], split.labels[predicted >= 0])
    if outside is not None:
        away = Evaluator(outside, reading, batch_size=eval_batch_size).evaluate(
            static, inputs, keeps_logits=keeps_logits
        )
        (other,) = away.outcomes
        scores["ood"] = {"images": len(other.other_odds), **detection(inside.outcomes[0], other)}
        if rule is not None and away.logits is not None:
            scores["ood"]["accepted"] = 100 * float((~rule.rejected(away.logits[0])).mean())
    return scores, predicted
