"""The jitted forward pass of an evaluation: from images to features, logits and predictions of all runs at once."""

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
from clipbias.tuning.method import Learnables
from clipbias.tuning.task import Classifier, Text


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
    placed = placement.device_put(mesh, learnables, placement.RUN)
    return static, EvalInputs(params, placed, place_text(mesh, task, params))


def images_per_step(batch_size: int, crops: int, mesh: Mesh) -> int:
    """Images that an evaluation step takes: with `crops` of each, so many fewer, but one for each device at least."""
    return placement.rows(mesh, max(1, batch_size // (1 + crops)))


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
class BatchPredictions:
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
) -> BatchPredictions:
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
    return BatchPredictions(
        predicted=predicted.astype(jnp.int32),
        other_odds=plain,
        highest=highest,
        other_odds_at=other_odds_at,
        log_probs=log_probs,
        logits=scores if keeps_logits else None,
    )


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


def check_finite(logits: np.ndarray) -> None:
    """Raises `ClipbiasError` where logits are not numbers; the largest would still count as a prediction."""
    if not np.isfinite(logits).all():
        raise ClipbiasError(
            "what is computed for the images is not finite: what was learned is too large; tune again with a lower "
            "--config.learning_rate."
        )
