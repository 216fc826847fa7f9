"""The jitted forward pass of an evaluation: features, logits and predictions of all runs at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from clipbias.clip.layers import no_gradient
from clipbias.clip.params import Params
from clipbias.clip.preprocess import Preprocessing
from clipbias.errors import ClipbiasError
from clipbias.training import placement
from clipbias.training.device import explain_exhaustion
from clipbias.training.step import over_runs, place_text
from clipbias.tuning import Task
from clipbias.tuning.method import Learnables, select_run
from clipbias.tuning.task import Classifier, Text


@dataclasses.dataclass(frozen=True)
class EvalStatic:
    """Static arguments of an evaluation of `R = runs` runs. Hashable: equal ones share compiled programs.

    `preprocessing` is `None` for normalised images, `mesh` for a single device.
    """

    classifier: Classifier
    preprocessing: Preprocessing | None
    mesh: Mesh | None
    runs: int


@struct.dataclass
class EvalInputs:
    """Inputs on the mesh that no batch changes; learnables have the leading axis `R`.

    `text` has features `[R, S · C, d]`, or `[1, S · C, d]` that runs share; tokens where prompts depend on the image.
    """

    params: Params
    learnables: Learnables
    text: Text


def make_evaluation(
    task: Task, params: Params, learnables: Learnables, *, runs: int, mesh: Mesh
) -> tuple[EvalStatic, EvalInputs]:
    """Makes the arguments of an evaluation, from weights on the mesh and learnables `[R, …]` on the host."""
    static = EvalStatic(task.classifier, task.clip.preprocessing, mesh, runs)
    placed = placement.device_put(mesh, learnables, placement.RUN)
    return static, EvalInputs(params, placed, place_text(mesh, task, params))


def images_per_step(batch_size: int, crops: int, mesh: Mesh) -> int:
    # Each image comes with its crops: the batch size bounds the views, whose activations fill the memory.
    return placement.rows(mesh, max(1, batch_size // (1 + crops)))


@functools.partial(jax.jit, static_argnames="static")
def text_features(static: EvalStatic, inputs: EvalInputs) -> jax.Array:
    """Computes the text features of `R` runs, `[R, S · C, d]`, once per evaluation."""
    # The policy of forward-only programs: tasks that differ in the memory plan of their training share this program.
    classifier = dataclasses.replace(static.classifier, remat=no_gradient)

    def of_run(learnables: Learnables) -> jax.Array:
        return classifier.encode_text(inputs.params, classifier.method.adapt(learnables), inputs.text)

    return over_runs(of_run, (0,), runs=static.runs)(inputs.learnables)


@functools.partial(jax.jit, static_argnames="static")
def image_features(static: EvalStatic, params: Params, learnables: Learnables, images: jax.Array) -> jax.Array:
    """Computes features `[R, B, d]` of images `[B, size, size, 3]`, or `[R, B, 1 + V, d]` of views `[B, 1 + V, …]`."""
    classifier = dataclasses.replace(static.classifier, remat=no_gradient)
    # On the device: bytes travel there in a quarter of the time of float32.
    if static.preprocessing is not None:
        images = static.preprocessing.normalize(images)

    def of_run(learnables: Learnables) -> jax.Array:
        return classifier.encode_images(params, classifier.method.adapt(learnables), images)

    return over_runs(of_run, (0,), runs=static.runs, mesh=static.mesh)(learnables)


@struct.dataclass
class BatchPredictions:
    """Predictions of each run for a batch of images, every leaf `[R, B]`; see `calibration.Outcome`.

    `log_probs`, `[R, B, 7]`, has the five largest log-probabilities (-inf beyond the last class), the label's, and the
    log-sum-exp of the logits. `logits`, if they are kept, are `[R, B, C]`.
    """

    # Files keep half precision, whose steps are 0.06 at a logit of 100: sure predictions differ only in their
    # log-probabilities. Log-probabilities plus the log-sum-exp are the logits.

    predicted: jax.Array
    other_odds: jax.Array
    highest: jax.Array
    other_odds_at: jax.Array
    log_probs: jax.Array
    logits: jax.Array | None = None


@functools.partial(jax.jit, static_argnames="static")
def logits(static: EvalStatic, inputs: EvalInputs, images: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Computes logits `[R, B, C]` from features of images, `[R, B, d]`, or `[1, B, d]` that runs share."""
    classifier = static.classifier
    conditional = static.classifier.method.conditional

    def of_run(learnables: Learnables, image: jax.Array, text: jax.Array) -> jax.Array:
        if conditional:
            adaptation = classifier.method.adapt(learnables)
            text = classifier.encode_text_for(inputs.params, learnables, adaptation, image, inputs.text)
        return classifier.head(inputs.params, learnables, image, text, mask)

    # Broadcast within the program, so that features that runs share lie on the device once.
    # `vmap` needs an array for each run; where prompts depend on the image, the tokens stay outside of it.
    features = images if conditional else jnp.asarray(inputs.text)
    images, features = (jnp.broadcast_to(x, (static.runs, *x.shape[1:])) for x in (images, features))
    return over_runs(of_run, (0, 0, 0), runs=static.runs)(inputs.learnables, images, features)


@functools.partial(jax.jit, static_argnames="static")
def correct_and_loss(
    static: EvalStatic, inputs: EvalInputs, images: jax.Array, mask: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns whether each image's most likely class is its label, and the label's `-log p`, `[R, B]` each."""
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
) -> BatchPredictions:
    """Predicts the classes of a batch, with confidences for the logits and for logits over `temperatures [R]`."""
    scores = logits(static, inputs, images, mask)
    predicted = scores.argmax(-1)
    highest = scores.max(-1)
    # The largest probability is 1 / (1 + odds), with odds = Σ exp(z_j - z_max) over the other classes. A probability
    # near 1 would be rounded to 1 in float32, where the odds keep their order.
    below = (scores - highest[..., None]).astype(jnp.float32)
    others = predicted[..., None] != jnp.arange(scores.shape[-1])

    def other_odds(below: jax.Array) -> jax.Array:
        return jnp.where(others, jnp.exp(below), 0).sum(-1)

    other_odds_at = other_odds(below / temperatures[:, None, None])
    plain = other_odds(below)
    total = jnp.log1p(plain)[..., None]  # log-sum-exp less the largest logit
    # A label of -1 would take the last class; the caller drops these images.
    of_label = jnp.take_along_axis(below, jnp.maximum(labels, 0)[None, :, None], axis=-1)
    five = jax.lax.top_k(below, min(5, below.shape[-1]))[0]
    five = jnp.pad(five, ((0, 0), (0, 0), (0, 5 - five.shape[-1])), constant_values=-jnp.inf)
    highest = highest.astype(jnp.float32)
    log_probs = jnp.concatenate([five - total, of_label - total, highest[..., None] + total], axis=-1)
    return BatchPredictions(
        predicted=predicted.astype(jnp.int32),
        other_odds=plain,
        highest=highest,
        other_odds_at=other_odds_at,
        log_probs=log_probs,
        logits=scores if keeps_logits else None,
    )


def encode_texts(static: EvalStatic, inputs: EvalInputs) -> EvalInputs:
    """Returns the inputs with features in place of tokens, unless prompts depend on the image."""
    if static.classifier.method.conditional:
        return inputs
    if static.classifier.changes_text(select_run(inputs.learnables, 0)):
        with explain_exhaustion("lower --config.eval_batch_size."):
            return dataclasses.replace(inputs, text=text_features(static, inputs))
    assert isinstance(inputs.text, jax.Array), "texts that no learnable changes were encoded once"
    return dataclasses.replace(inputs, text=inputs.text[None])


def check_finite(logits: np.ndarray) -> None:
    """Raises `ClipbiasError` where logits are not finite."""
    # `argmax` of NaN is a class, too: the accuracy would be that of chance, without an error.
    if not np.isfinite(logits).all():
        raise ClipbiasError(
            "the logits are not finite: the trained parameters are too large; train again with a lower "
            "--config.learning_rate."
        )
