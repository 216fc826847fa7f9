"""A step's loss and gradient over micro-batches, one after another, in the memory of one.

They are those of the whole batch, to rounding: texts are encoded once, and each micro-batch adds its share of the loss
and of its gradients by the learnables and by the text features. The text tower's backward pass then runs once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from clipbias.training import mesh as meshes
from clipbias.training.divergence import Batch, combines, loss_terms, targets
from clipbias.training.step_inputs import StepInputs, StepStatic
from clipbias.tuning import Task
from clipbias.tuning.classifier import EncodedTexts
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.method import CONSTANTS, Learnables

# Loss, share of correct images, and the gradient that a step takes.
Gradient = tuple[jax.Array, jax.Array, Learnables]


def why_whole(task: Task) -> str | None:
    """Why a method's batches cannot be split into micro-batches, as the end of a sentence; `None` where they can."""
    name = type(task.method).__name__
    method = task.method
    if sampling_of(method) is not None:
        return f"{name} trains on features of images, which are small"
    if method.batchwise:
        return f"what {name} makes of an image depends on the other images of its batch"
    if task.classifier.drops_vision(task.shapes):
        return f"{name} drops inputs of the vision tower by one draw for all images of a batch"
    return None


def whole_learnables(learned: Learnables, constants: Learnables) -> Learnables:
    """What a method takes: the learnables that a step changes, with their constants."""
    return {**learned, CONSTANTS: constants} if constants else learned


def accumulated_gradient(
    static: StepStatic, inputs: StepInputs, learned: Learnables, batch: Batch, rng: jax.Array
) -> Gradient:
    """`step.loss_and_gradient` over the micro-batches of a batch.

    Arguments as there, but for `batch`: its images are as they are read, and a device's rows lie side by side.
    """
    classifier = static.classifier
    method = classifier.method
    constants = inputs.constants
    count = jnp.maximum(batch["mask"].sum(), 1)  # 1: a batch without a readable image

    def texts(learned: Learnables) -> EncodedTexts:
        learnables = whole_learnables(learned, constants)
        return classifier.texts_in_training(inputs.params, learnables, inputs.texts, rng)

    # Texts that depend on the image are those of its micro-batch.
    encoded, pull_texts = (None, None) if method.conditional else jax.vjp(texts, learned)

    def terms(
        learned: Learnables, encoded: EncodedTexts | None, micro_batch: Batch
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        labels = targets(micro_batch)
        mask = micro_batch["mask"]
        losses, logits = classifier.losses(
            inputs.params,
            whole_learnables(learned, constants),
            static.preprocessing.normalize(micro_batch["images"]),
            labels,
            inputs.texts,
            rng=rng,
            mask=mask,
            encoded=encoded,
        )
        shares = {
            name: term / static.micro_batches if jnp.ndim(term) == 0 else jnp.where(mask, term, 0).sum() / count
            for name, term in loss_terms(losses, logits, micro_batch).items()
        }
        if not combines(method, batch):
            shares = {"": functools.reduce(jnp.add, shares.values())}
        return shares, ((logits.argmax(-1) == labels) & mask).sum()

    def share(micro_batch: Batch) -> Any:
        losses, pull, correct = jax.vjp(
            lambda learned, encoded: terms(learned, encoded, micro_batch), learned, encoded, has_aux=True
        )
        single = {name: {other: jnp.float32(other == name) for other in losses} for name in losses}
        return losses, correct, {name: pull(seed) for name, seed in single.items()}

    def add(total: Any, micro_batch: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, share(micro_batch)), None

    devices = 1 if static.mesh is None else static.mesh.shape[meshes.DATA]
    rows = {name: _micro_batches(value, static.micro_batches, devices) for name, value in batch.items()}
    first = {name: value[0] for name, value in rows.items()}
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(share, first))
    (losses, correct, gradients), _ = jax.lax.scan(add, start, rows)

    def whole_gradient(by_learned: Learnables, by_texts: Any) -> Learnables:
        return by_learned if pull_texts is None else jax.tree.map(jnp.add, by_learned, pull_texts(by_texts)[0])

    by_term = {name: whole_gradient(*pair) for name, pair in gradients.items()}
    gradient = method.combine(by_term) if combines(method, batch) else by_term[""]
    return functools.reduce(jnp.add, losses.values()), correct / count, gradient


def _micro_batches(rows: jax.Array, count: int, devices: int) -> jax.Array:
    """`[B, …]` as `[count, B / count, …]`, so that each micro-batch has as many rows of each device as the others.

    Missing rows are zeros, which the mask drops.
    """
    by_device = rows.reshape(devices, -1, *rows.shape[1:])
    padding = [(0, 0), (0, -by_device.shape[1] % count)] + [(0, 0) for _ in rows.shape[1:]]
    by_device = jnp.pad(by_device, padding).reshape(devices, count, -1, *rows.shape[1:])
    return by_device.swapaxes(0, 1).reshape(count, -1, *rows.shape[1:])
