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
from flax import struct
from jax.sharding import Mesh

from clipbias.clip import PackedTokens
from clipbias.clip.params import Params
from clipbias.clip.preprocess import Preprocessing
from clipbias.training import mesh as meshes
from clipbias.training.accumulation import in_parts
from clipbias.tuning import Recipe, Task
from clipbias.tuning.classifier import Classifier, Text, mean_loss
from clipbias.tuning.learnables import without_constants
from clipbias.tuning.method import CONSTANTS, Learnables, Method


@struct.dataclass
class TrainState:
    """What a step changes; arrays that belong to learnables have the leading axis `R`.

    Attributes:
      learnables: without their constants.
      momentum: the optimiser's state, named after that of the first optimiser.
      step: the number of steps done, one for all runs.
      average: the weighted sum of earlier epochs' learnables (`Method.average`), or `None`.
    """

    learnables: Learnables
    momentum: Any
    step: jax.Array
    average: Learnables | None = None


@struct.dataclass
class StepInputs:
    """Inputs that stay constant over training, besides the frozen weights.

    Attributes:
      text: what stands for the classes, from `place_text`; the runs share it.
      reference: features `[S' · C, d]` of a frozen teacher's texts, or `None`.
      constants: the learnables that no step changes, leading axis `R`; empty where there are none.
      seeds: int32 `[R]`, of what is random in a step.
      template_tokens: the templates without a class name, for a method that asks for them, else `None`.
    """

    text: Text
    reference: jax.Array | None
    constants: Learnables
    seeds: jax.Array
    template_tokens: PackedTokens | None = None


def init_state(method: Method, recipe: Recipe, learnables: Learnables) -> TrainState:
    """The state before the first step; `learnables` have the leading axis `R`."""
    learned = without_constants(learnables)
    average = None
    if method.average(recipe.epochs) is not None:
        average = jax.tree.map(jnp.zeros_like, learned)
    return TrainState(learned, method.optimizer(recipe).init(learned), jnp.zeros((), jnp.int32), average)


def place_inputs(
    mesh: Mesh, task: Task, params: Params | None, learnables: Learnables, seeds: Sequence[int]
) -> StepInputs:
    """What the steps of runs with these learnables, leading axis `R`, are given, on the mesh.

    Without `params` only shapes, types and shardings are returned.
    """
    text = place_text(mesh, task, params, training=True)
    reference: Any = None
    if task.reference_texts:
        if params is None:
            shape = (task.reference_texts, task.clip.config.projection_width)
            reference = meshes.replicate(mesh, jax.ShapeDtypeStruct(shape, np.float32))
        else:
            reference = jax.device_put(task.reference_features(params), meshes.sharding(mesh))
    constants = meshes.device_put(mesh, learnables.get(CONSTANTS, {}), meshes.RUN)
    template_tokens = task.template_tokens
    if template_tokens is not None:
        template_tokens = _place_packed(mesh, template_tokens, shapes=params is None)
    numbers: Any = np.asarray(seeds, np.int32) if params is not None else jax.ShapeDtypeStruct((len(seeds),), np.int32)
    return StepInputs(text, reference, constants, meshes.device_put(mesh, numbers, meshes.RUN), template_tokens)


def place_text(mesh: Mesh, task: Task, params: Params | None, *, training: bool = False) -> Text:
    """What stands for a task's classes, on the mesh.

    That is the text tower's features, computed here, where no learnable changes them, else the tokens, split over
    devices: packed, but for steps of `training` with dropout in the text tower, whose texts share no token. Without
    `params` only shapes, types and shardings are returned.
    """
    if not task.classifier.changes_text(task.shapes):
        if params is None:
            shape = (len(task.texts), task.clip.config.projection_width)
            return meshes.replicate(mesh, jax.ShapeDtypeStruct(shape, np.float32))
        features = task.fixed_text(params, task.init())
        return jax.device_put(features, meshes.sharding(mesh))
    if training and task.classifier.drops_text(task.shapes):
        tokens = task.tokens if params is not None else meshes.shapes(task.tokens)
        divides = tokens.ids.shape[0] % mesh.shape[meshes.DATA] == 0
        return meshes.device_put(mesh, tokens, meshes.DATA if divides else None)
    return _place_packed(mesh, task.text, shapes=params is None)


def _place_packed(mesh: Mesh, text: PackedTokens, *, shapes: bool) -> PackedTokens:
    text = meshes.shapes(text) if shapes else text
    split = meshes.DATA if text.ids.shape[0] % mesh.shape[meshes.DATA] == 0 else None
    placed = meshes.device_put(
        mesh, dataclasses.replace(text, order=text.ends), split
    )  # all arrays with an axis of groups
    return dataclasses.replace(placed, order=meshes.replicate(mesh, text.order))


def over_runs(
    function: Callable[..., Any], in_axes: Sequence[int | None], *, runs: int, mesh: Mesh | None = None
) -> Callable[..., Any]:
    """`jax.vmap` over the runs' leading axis; one run alone is called as it is, which spares a tenth of its step.

    With a mesh, what a device can compute by itself of its own runs and images is left to it (`meshes.traced_on`).
    """
    if mesh is not None:
        function = meshes.traced_on(mesh, function)
    if runs > 1:
        split = mesh is not None and runs % mesh.shape[meshes.RUN] == 0
        return jax.vmap(function, tuple(in_axes), axis_size=runs, spmd_axis_name=meshes.RUN if split else None)

    def one(*arguments: Any) -> Any:
        picked = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*picked))

    return one


def loss_and_gradients(
    classifier: Classifier,
    params: Params,
    text: Text,
    reference: jax.Array | None,
    learned: Learnables,
    constants: Learnables,
    batch: tuple[jax.Array, ...],
    rng: jax.Array,
    template_tokens: PackedTokens | None = None,
    chosen: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, Learnables]:
    """Loss, share of correct images, and the gradient that a step takes, of one run.

    The batch is images, labels and mask; what `mask` drops of the `B` images does not count. The other arguments are
    as those of `Classifier.losses`.
    """
    images, labels, mask = batch

    def terms(learned: Learnables) -> tuple[dict[str, jax.Array], jax.Array]:
        learnables = {**learned, CONSTANTS: constants} if constants else learned
        terms, logits = classifier.losses(
            params, learnables, images, labels, text, reference, rng, mask, template_tokens, chosen
        )
        correct = (logits.argmax(-1) == labels) & mask
        return {name: mean_loss(term, mask) for name, term in terms.items()}, correct.sum() / jnp.maximum(mask.sum(), 1)

    if not classifier.method.overrides("combine"):

        def objective(learned: Learnables) -> tuple[jax.Array, jax.Array]:
            found, accuracy = terms(learned)
            return functools.reduce(jnp.add, found.values()), accuracy

        (loss, accuracy), gradients = jax.value_and_grad(objective, has_aux=True)(learned)
        return loss, accuracy, gradients
    found, pull, accuracy = jax.vjp(terms, learned, has_aux=True)
    single = {name: {other: jnp.float32(other == name) for other in found} for name in found}
    gradients = classifier.method.combine({name: pull(one)[0] for name, one in single.items()})
    return functools.reduce(jnp.add, found.values()), accuracy, gradients


@functools.partial(
    jax.jit,
    static_argnames=("classifier", "preprocessing", "recipe", "mesh", "parts"),
    donate_argnames="state",
)
def train_step(
    classifier: Classifier,
    preprocessing: Preprocessing,
    recipe: Recipe,
    params: Params,
    given: StepInputs,
    state: TrainState,
    batch: dict[str, jax.Array],
    learning_rate: jax.Array,
    weight: jax.Array | None = None,
    mesh: Mesh | None = None,
    parts: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Forward, backward and update of `R` runs.

    Args:
      classifier, preprocessing, recipe: static.
      params: the frozen weights; no gradient of theirs is formed.
      given: from `place_inputs`.
      state: donated.
      batch: `images` uint8 `[R, B, size, size, 3]`, or float32 features `[R, B, D]` that stand for them; `labels` int32
        `[R, B]`, `mask` bool `[R, B]`.
      learning_rate: `[R]`.
      weight: of the learnables after this step in the average, 0 but at the end of an epoch; `None` without one.
      mesh: static, where the new state lies as the old one does, so that one program serves all steps, and the metrics
        lie on every device; `None` leaves that to the compiler.
      parts: static, in how many parts the batch is taken, one after another (`accumulation.in_parts`).

    Returns:
      The new state, and `loss`, `accuracy` and `gradient_norm` of each run, `[R]` each.
    """
    images, method = batch["images"], classifier.method
    compute: Callable[..., Any] = loss_and_gradients
    if parts > 1:
        groups = 1 if mesh is None else mesh.shape[meshes.DATA]
        compute = functools.partial(in_parts, parts=parts, groups=groups, normalize=preprocessing.normalize)
    elif images.dtype == jnp.uint8:
        images = preprocessing.normalize(images)

    def one(learned: Learnables, constants: Learnables, seed: jax.Array, *batch: jax.Array) -> Any:
        rng, chosen = jax.random.fold_in(jax.random.key(seed), state.step), None
        if method.overrides("templates_in_training"):
            chosen = method.templates_in_training(jax.random.key(seed), state.step)
        arguments = (params, given.text, given.reference, learned, constants, batch, rng, given.template_tokens, chosen)
        return compute(classifier, *arguments)

    every = over_runs(one, [0] * 6, runs=learning_rate.shape[0], mesh=mesh)
    data = images, batch["labels"], batch["mask"]
    loss, accuracy, gradients = every(state.learnables, given.constants, given.seeds, *data)
    # The optimiser acts on each number by itself, so the runs' axis needs no care.
    decayed = method.decayed(state.learnables, params)
    directions, momentum = method.optimizer(recipe).update(gradients, state.momentum, decayed)
    learnables = jax.tree.map(
        lambda p, v: p - learning_rate.reshape(-1, *[1] * (p.ndim - 1)) * v, state.learnables, directions
    )
    average = state.average
    if average is not None and weight is not None:
        average = jax.tree.map(lambda a, p: a + weight * p, average, learnables)
    squares = [jnp.square(g).sum(range(1, g.ndim)) for g in jax.tree.leaves(gradients)]
    metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": jnp.sqrt(sum(squares))}
    new = TrainState(learnables, momentum, state.step + 1, average)
    return (
        (new, metrics) if mesh is None else (meshes.constrain(mesh, new, meshes.RUN), meshes.constrain(mesh, metrics))
    )
