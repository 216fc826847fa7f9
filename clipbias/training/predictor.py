"""Predictions of one tuned model: what users, commands, studies and the page in the browser call."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip.encode import image_batches
from clipbias.clip.params import Params
from clipbias.clip.precision import cast_weights
from clipbias.data.user_images import Pictures
from clipbias.prediction import Prediction
from clipbias.training.outcomes import EvalInputs, EvalStatic, check_finite, image_features, logits
from clipbias.tuning import Task
from clipbias.tuning.classifier import Text
from clipbias.tuning.conformal import AnswerRule
from clipbias.tuning.features import unit_length
from clipbias.tuning.method import Learnables
from clipbias.tuning.test_time_method import crops_of, mixes_crops


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """One task with its learnables, ready for batches of images: its texts are encoded once.

    Attributes:
      task: the method bound to classes.
      static, inputs: of an evaluation of a single run.
    """

    task: Task
    static: EvalStatic
    inputs: EvalInputs

    @classmethod
    def of(cls, task: Task, learnables: Learnables, params: Params | None = None) -> "Predictor":
        """A predictor with weights that are placed already; by default on JAX's first device."""
        if params is None:
            params = cast_weights(task.clip.device_params, task.classifier.dtype)
        text: Text = task.text
        if not task.method.conditional:
            text = task.text_features(params, learnables)[None]
        static = EvalStatic(task.classifier, task.clip.preprocessing, mesh=None, runs=1)
        run = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], learnables)
        return cls(task, static, EvalInputs(params, run, text))

    @property
    def text(self) -> Text:
        """Features of the texts `[S · C, d]`, as `task.logits` takes them; the texts where they depend on the image."""
        return self.inputs.text[0] if isinstance(self.inputs.text, jax.Array) else self.inputs.text

    def logits(self, images: jax.Array | np.ndarray, mask: jax.Array | np.ndarray | None = None) -> jax.Array:
        """Logits `[B, C]` of images with levels from 0 to 255, `[B, R, R, 3]`, or views of each `[B, 1 + V, R, R, 3]`.

        `mask [B]` says which of the images count; the others only fill the batch.
        """
        return _logits(self.static, self.inputs, images, mask)

    def logits_and_features(
        self, images: jax.Array | np.ndarray, mask: jax.Array | np.ndarray | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`logits`, and the features of the images, of unit length, `[B, d]`."""
        return _logits_and_features(self.static, self.inputs, images, mask)

    def classify(
        self, images: jax.Array | np.ndarray, mask: np.ndarray, *, normalised: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The softmax of `logits`, and these; images may come normalised.

        Raises:
          ClipbiasError: the largest logit of an image that counts is no finite number.
        """
        static = dataclasses.replace(self.static, preprocessing=None) if normalised else self.static
        probabilities, logits = map(np.asarray, _probabilities(static, self.inputs, images, mask))
        check_finite(logits[mask].max(-1))
        return probabilities, logits

    def predict(
        self,
        pictures: Pictures,
        *,
        batch_size: int,
        normalised: bool = False,
        on_error: str = "raise",
        rule: AnswerRule | None = None,
    ) -> Prediction:
        """See `TunedModel.predict`."""
        batches = image_batches(
            self.task.clip.preprocessing,
            pictures,
            batch_size,
            normalised=normalised,
            crops=crops_of(self.task.method),
            mixed=mixes_crops(self.task.method),
            on_error=on_error,
        )
        rows = np.full((2, batches.count, len(self.task.class_names)), np.nan, np.float32)
        for number, (images, mask) in enumerate(batches):
            for of_kind, values in zip(rows, self.classify(images, mask, normalised=batches.normalised), strict=True):
                of_kind[number * batches.rows + np.flatnonzero(mask)] = values[mask]
        probabilities, logits = rows
        return Prediction(self.task.class_names, probabilities, dict(sorted(batches.errors.items())), logits, rule)


@functools.partial(jax.jit, static_argnames="static")
def _logits_and_features(
    static: EvalStatic, inputs: EvalInputs, images: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    features = image_features(static, inputs.params, inputs.learnables, images)
    whole = unit_length(static.classifier.whole_image_features(features[0]))
    return logits(static, inputs, features, mask)[0], whole


@functools.partial(jax.jit, static_argnames="static")
def _logits(static: EvalStatic, inputs: EvalInputs, images: jax.Array, mask: jax.Array | None) -> jax.Array:
    features = image_features(static, inputs.params, inputs.learnables, images)
    return logits(static, inputs, features, mask)[0]


@functools.partial(jax.jit, static_argnames="static")
def _probabilities(
    static: EvalStatic, inputs: EvalInputs, images: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    logits = _logits(static, inputs, images, mask)
    return jax.nn.softmax(logits, axis=-1), logits
