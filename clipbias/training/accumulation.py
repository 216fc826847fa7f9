"""A step's loss and gradients over parts of its batch, one after another, in the memory of one part.

They are those of the whole batch, to rounding: texts are encoded once, and each part adds its share of the loss and of
its gradients by the learnables and by the text features, of which the text tower's backward pass then runs once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clipbias.clip import PackedTokens
from clipbias.clip.params import Params
from clipbias.tuning import Task
from clipbias.tuning.classifier import Classifier, Text
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.method import CONSTANTS, Learnables

Batch = tuple[jax.Array, ...]  # images, labels and mask


def why_whole(task: Task) -> str | None:
    """Why the batches of a method cannot be taken in parts, as the end of a sentence; `None` where they can."""
    name, method = type(task.method).__name__, task.method
    if sampling_of(method) is not None:
        return f"{name} trains on features of images, which are small"
    if method.batchwise:
        return f"what {name} makes of an image depends on the other images of its batch"
    if task.classifier.drops_vision(task.shapes):
        return f"{name} drops inputs of the vision tower by one draw for all images of a batch"
    return None


def in_parts(
    classifier: Classifier,
    params: Params,
    text: Text,
    reference: jax.Array | None,
    learned: Learnables,
    constants: Learnables,
    batch: Batch,
    rng: jax.Array,
    template_tokens: PackedTokens | None = None,
    chosen: jax.Array | None = None,
    *,
    parts: int,
    groups: int,
    normalize: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array, Learnables]:
    """`step.loss_and_gradients` of a batch in so many parts.

    Arguments as there, but for those below.

    Args:
      batch: images as they are read; a device's rows lie side by side.
      parts: how many; what the last ones lack is filled up and masked.
      groups: devices that share the batch, each of which takes a part of its own images at a time.
      normalize: turns images into what the model takes.
    """
    count, method = jnp.maximum(batch[2].sum(), 1), classifier.method  # 1: a batch without a readable image

    def whole(learned: Learnables) -> Learnables:
        return {**learned, CONSTANTS: constants} if constants else learned

    def texts(learned: Learnables) -> Any:
        return classifier.texts_in_training(params, whole(learned), text, rng, template_tokens, chosen)

    # Texts that depend on the image are those of its part.
    encoded, pull_texts = (None, None) if method.conditional else jax.vjp(texts, learned)

    def terms(learned: Learnables, encoded: Any, part: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
        images, labels, mask = part
        found, logits = classifier.losses(
            *(params, whole(learned), normalize(images), labels, text, reference, rng, mask, template_tokens, chosen),
            encoded=encoded,
        )
        shares = {
            name: term / parts if jnp.ndim(term) == 0 else jnp.where(mask, term, 0).sum() / count
            for name, term in found.items()
        }
        if not method.overrides("combine"):
            shares = {"": functools.reduce(jnp.add, shares.values())}
        return shares, ((logits.argmax(-1) == labels) & mask).sum()

    def share(part: Batch) -> Any:
        found, pull, correct = jax.vjp(
            lambda learned, encoded: terms(learned, encoded, part), learned, encoded, has_aux=True
        )
        single = {name: {other: jnp.float32(other == name) for other in found} for name in found}
        return found, correct, {name: pull(one) for name, one in single.items()}

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, share(part)), None

    rows = jax.tree.map(lambda leaf: _in_parts(leaf, parts, groups), batch)
    first = jax.tree.map(lambda leaf: leaf[0], rows)
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(share, first))
    (found, correct, gradients), _ = jax.lax.scan(add, start, rows)

    def whole_gradient(by_learned: Learnables, by_texts: Any) -> Learnables:
        return by_learned if pull_texts is None else jax.tree.map(jnp.add, by_learned, pull_texts(by_texts)[0])

    by_term = {name: whole_gradient(*own) for name, own in gradients.items()}
    gradient = method.combine(by_term) if method.overrides("combine") else by_term[""]
    return functools.reduce(jnp.add, found.values()), correct / count, gradient


def _in_parts(rows: jax.Array, parts: int, groups: int) -> jax.Array:
    """`[B, …]` as `[parts, B / parts, …]`, so that every part has as many rows of each group as the others."""
    own = rows.reshape(groups, -1, *rows.shape[1:])
    padding = [(0, 0), (0, -own.shape[1] % parts)] + [(0, 0)] * (own.ndim - 2)
    own = jnp.pad(own, padding)
    own = own.reshape(groups, parts, -1, *rows.shape[1:]).swapaxes(0, 1)
    return own.reshape(parts, -1, *rows.shape[1:])
