"""What runs say of images, from towers to answers, as compiled functions of all runs at once."""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from clipbias.clip.params import Params
from clipbias.clip.preprocess import Preprocessing
from clipbias.training import mesh as meshes
from clipbias.training.step import over_runs
from clipbias.tuning.classifier import Classifier, Text
from clipbias.tuning.method import Learnables


def images_per_step(batch_size: int, crops: int, mesh: Mesh) -> int:
    """Images that an evaluation step takes: with `crops` of each, so many fewer, but one for each device at least."""
    size = mesh.shape[meshes.DATA]
    return -(-max(1, batch_size // (1 + crops)) // size) * size


@functools.partial(jax.jit, static_argnames=("classifier", "runs"))
def text_features(
    classifier: Classifier, params: Params, learnables: Learnables, text: Text, *, runs: int
) -> jax.Array:
    """The text tower's features under `R` runs, `[R, S · C, d]`: computed once per evaluation."""

    def one(learnables: Learnables) -> jax.Array:
        return classifier.encode_text(params, classifier.method.adapt(learnables), text)

    return over_runs(one, (0,), runs=runs)(learnables)


@functools.partial(jax.jit, static_argnames=("classifier", "preprocessing", "runs", "mesh"))
def image_features(
    classifier: Classifier,
    preprocessing: Preprocessing,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    *,
    runs: int,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Features of images `[B, size, size, 3]` under `R` runs, `[R, B, d]`, as the tower makes them.

    Images have levels from 0 to 255. Of views of each image, `[B, 1 + V, size, size, 3]`, they are `[R, B, 1 + V, d]`.
    `mesh` is that of the devices which share the images.
    """
    images = preprocessing.normalize(images)

    def one(learnables: Learnables) -> jax.Array:
        return classifier.encode_images(params, classifier.method.adapt(learnables), images)

    return over_runs(one, (0,), runs=runs, mesh=mesh)(learnables)


@struct.dataclass
class Answers:
    """What each run says of a batch of images, every leaf `[R, B]`; see `calibration.Outcome`.

    `log_probs`, float16 `[R, B, 7]`, has the five largest log-probabilities (-inf beyond the last class), the label's,
    and the log-sum-exp of the logits: logits are log-probabilities plus the log-sum-exp, but half precision keeps
    differences between sure predictions only in this form.
    """

    predicted: jax.Array
    doubt: jax.Array
    highest: jax.Array
    doubt_at: jax.Array
    log_probs: jax.Array


@functools.partial(jax.jit, static_argnames=("classifier", "runs"))
def logits(
    classifier: Classifier,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    text: Text,
    mask: jax.Array,
    *,
    runs: int,
) -> jax.Array:
    """The logits under each run, `[R, B, C]`.

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
        return classifier.head(params, learnables, image, own, mask)

    features = images if conditional else jnp.asarray(text)
    images, features = (jnp.broadcast_to(x, (runs, *x.shape[1:])) for x in (images, features))
    return over_runs(one, (0, 0, 0), runs=runs)(learnables, images, features)


@functools.partial(jax.jit, static_argnames=("classifier", "runs"))
def verdicts(
    classifier: Classifier,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    text: Text,
    mask: jax.Array,
    labels: jax.Array,
    *,
    runs: int,
) -> tuple[jax.Array, jax.Array]:
    """Under each run, whether the most likely class of each image is its label, and the label's `-log p`, `[R, B]`.

    Labels are `[B]`; what is said where one is -1 means nothing.
    """
    found = logits(classifier, params, learnables, images, text, mask, runs=runs).astype(jnp.float32)
    own = jnp.maximum(labels, 0)[None, :, None]
    loss = jax.nn.logsumexp(found, axis=-1) - jnp.take_along_axis(found, own, axis=-1)[..., 0]
    return found.argmax(-1) == labels, loss


@functools.partial(jax.jit, static_argnames=("classifier", "runs"))
def answers(
    classifier: Classifier,
    params: Params,
    learnables: Learnables,
    images: jax.Array,
    text: Text,
    mask: jax.Array,
    temperatures: jax.Array,
    labels: jax.Array,
    *,
    runs: int,
) -> Answers:
    """The most likely class under each run and how sure it is, as is and with logits over `temperatures [R]`.

    Labels are `[B]`; the log-probability of a label -1 means nothing.
    """
    found = logits(classifier, params, learnables, images, text, mask, runs=runs)
    predicted, highest = found.argmax(-1), found.max(-1)
    below = (found - highest[..., None]).astype(jnp.float32)
    others = predicted[..., None] != jnp.arange(found.shape[-1])

    def doubt(below: jax.Array) -> jax.Array:
        return jnp.where(others, jnp.exp(below), 0).sum(-1)

    at = doubt(below / temperatures[:, None, None])
    plain = doubt(below)
    total = jnp.log1p(plain)[..., None]  # log-sum-exp less the largest logit
    own = jnp.take_along_axis(below, jnp.maximum(labels, 0)[None, :, None], axis=-1)
    five = jax.lax.top_k(below, min(5, below.shape[-1]))[0]
    five = jnp.pad(five, ((0, 0), (0, 0), (0, 5 - five.shape[-1])), constant_values=-jnp.inf)
    highest = highest.astype(jnp.float32)
    log_probs = jnp.concatenate([five - total, own - total, highest[..., None] + total], axis=-1)
    return Answers(predicted.astype(jnp.int32), plain, highest, at, log_probs.astype(jnp.float16))
