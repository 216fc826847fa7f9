"""One training step of several independent runs in one program, and the text that it is given.

Every array that belongs to a run has a leading axis `R`; the runs are vectorised with `vmap` and share the frozen
weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from clipbias.clip.params import Params
from clipbias.clip.preprocess import Preprocessing
from clipbias.training import mesh as meshes
from clipbias.training.settings import Recipe
from clipbias.tuning import Task
from clipbias.tuning.classifier import Classifier, Text
from clipbias.tuning.method import Learnables


@struct.dataclass
class TrainState:
    """What a step changes: the learnables of `R` runs, the optimiser's momentum, and the number of steps done."""

    learnables: Learnables
    momentum: Any
    step: jax.Array


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """SGD as torch does it, without the learning rate: `g += wd · p; v = m v + g`."""
    return optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.trace(recipe.momentum))


def init_state(recipe: Recipe, learnables: Learnables) -> TrainState:
    """The state before the first step; `learnables` have the leading axis `R`."""
    return TrainState(learnables, optimizer(recipe).init(learnables), jnp.zeros((), jnp.int32))


def place_text(mesh: Mesh, task: Task, params: Params | None) -> Text:
    """What stands for a task's classes, on the mesh.

    That is the text tower's features, computed here, where no learnable changes them, else the tokens, split over
    devices. Without `params` only shapes, types and shardings are returned.
    """
    if not task.classifier.changes_text(task.shapes):
        if params is None:
            shape = (len(task.texts), task.clip.config.projection_width)
            return meshes.replicate(mesh, jax.ShapeDtypeStruct(shape, np.float32))
        features = task.fixed_text(params, task.init())
        return jax.device_put(features, meshes.sharding(mesh))
    text = task.text if params is not None else meshes.shapes(task.text)
    split = meshes.DATA if text.ids.shape[0] % mesh.shape[meshes.DATA] == 0 else None
    placed = meshes.place(mesh, dataclasses.replace(text, order=text.ends), split)  # all arrays with an axis of groups
    return dataclasses.replace(placed, order=meshes.replicate(mesh, text.order))


def over_runs(function: Callable[..., Any], in_axes: Sequence[int | None], *, runs: int) -> Callable[..., Any]:
    """`jax.vmap` over the runs' leading axis; one run alone is called as it is, which spares a tenth of its step."""
    if runs > 1:
        return jax.vmap(function, tuple(in_axes), axis_size=runs)

    def one(*arguments: Any) -> Any:
        picked = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*picked))

    return one


def loss_and_accuracy(
    classifier: Classifier,
    params: Params,
    text: Text,
    learnables: Learnables,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy and share of correct images among the `B` that `mask` keeps, of one run."""
    logits = classifier.logits(params, learnables, images, text)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    count = mask.sum()
    correct = (logits.argmax(-1) == labels) & mask
    return jnp.where(mask, losses, 0).sum() / count, correct.sum() / count


@functools.partial(jax.jit, static_argnames=("classifier", "preprocessing", "recipe"), donate_argnames="state")
def train_step(
    classifier: Classifier,
    preprocessing: Preprocessing,
    recipe: Recipe,
    params: Params,
    text: Text,
    state: TrainState,
    batch: dict[str, jax.Array],
    learning_rate: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Forward, backward and update of `R` runs.

    Args:
      classifier, preprocessing, recipe: static.
      params: the frozen weights; no gradient of theirs is formed.
      text: what stands for the classes, from `place_text`; the runs share it.
      state: donated.
      batch: `images` uint8 `[R, B, size, size, 3]`, `labels` int32 `[R, B]`, `mask` bool `[R, B]`.
      learning_rate: `[R]`.

    Returns:
      The new state, and `loss`, `accuracy` and `gradient_norm` of each run, `[R]` each.
    """
    images = preprocessing.normalize(batch["images"])

    def one(learnables: Learnables, text: Text, *batch: Any) -> Any:
        def objective(learnables: Learnables) -> tuple[jax.Array, jax.Array]:
            return loss_and_accuracy(classifier, params, text, learnables, *batch)

        return jax.value_and_grad(objective, has_aux=True)(learnables)

    every = over_runs(one, (0, None, 0, 0, 0), runs=learning_rate.shape[0])
    (loss, accuracy), gradients = every(state.learnables, text, images, batch["labels"], batch["mask"])
    # Decay, momentum and learning rate act on each number by itself, so the runs' axis needs no care.
    directions, momentum = optimizer(recipe).update(gradients, state.momentum, state.learnables)
    learnables = jax.tree.map(
        lambda p, v: p - learning_rate.reshape(-1, *[1] * (p.ndim - 1)) * v, state.learnables, directions
    )
    squares = [jnp.square(g).sum(range(1, g.ndim)) for g in jax.tree.leaves(gradients)]
    metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": jnp.sqrt(sum(squares))}
    return TrainState(learnables, momentum, state.step + 1), metrics
