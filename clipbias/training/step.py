"""One training step of several independent runs in one program: what it takes, its loss, and the update.

Arrays of the runs have a leading axis `R`, vectorised with `vmap`. They share the frozen weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from clipbias.clip import PackedTokens
from clipbias.clip.params import Params
from clipbias.clip.preprocess import Preprocessing
from clipbias.training import mesh as meshes
from clipbias.tuning import Recipe, Task
from clipbias.tuning.method import CONSTANTS, Learnables, Method, without_constants
from clipbias.tuning.recipe import EPOCHS
from clipbias.tuning.task import Classifier, Text, TrainingTexts, mean_loss


@dataclasses.dataclass(frozen=True)
class StepStatic:
    """What never changes in a training. Hashable: trainings with equal ones share one compiled program.

    The new state lies on the mesh as the old one does, so that one program serves all steps, and the metrics lie on
    every device; a mesh of `None` leaves that to the compiler.
    """

    classifier: Classifier
    preprocessing: Preprocessing
    recipe: Recipe
    mesh: Mesh | None = None

    @classmethod
    def of(cls, task: Task, recipe: Recipe, mesh: Mesh | None = None) -> "StepStatic":
        """Of a task. The learning rate is an argument of the step, so all rates share a program."""
        return cls(task.classifier, task.clip.preprocessing, recipe.with_learning_rate(1.0), mesh)


@struct.dataclass
class StepInputs:
    """Inputs that stay constant over training: weights, without gradients, and texts, which the runs share.

    `constants` are the learnables that no step changes, leading axis `R`; `seeds`, int32 `[R]`, key what is random.
    """

    params: Params
    texts: TrainingTexts
    constants: Learnables
    seeds: jax.Array


@struct.dataclass
class TrainState:
    """What a step changes: learnables `[R, …]` without constants, the number of steps done, and the optimiser's state.

    `momentum` is named after that of the first optimiser. `average` is the weighted sum of earlier epochs' learnables
    (`Method.average`), or `None`.
    """

    learnables: Learnables
    momentum: optax.OptState
    step: jax.Array
    average: Learnables | None = None


@struct.dataclass
class StepScalars:
    """Numbers of a step: `learning_rate [R]`, and the weight of the learnables after it in the average.

    That is 0 except at the end of an epoch, and `None` without an average.
    """

    learning_rate: jax.Array
    weight: jax.Array | None = None


def init_state(method: Method, recipe: Recipe, learnables: Learnables) -> TrainState:
    """The state before the first step; `learnables` have the leading axis `R`."""
    learnables = without_constants(learnables)
    average = None
    if method.average(recipe.epochs or EPOCHS) is not None:
        average = jax.tree.map(jnp.zeros_like, learnables)
    return TrainState(learnables, method.optimizer(recipe).init(learnables), jnp.zeros((), jnp.int32), average)


def place_inputs(mesh: Mesh, task: Task, params: Params, learnables: Learnables, seeds: Sequence[int]) -> StepInputs:
    """The inputs of a training that starts from `learnables`, leading axis `R`, on the mesh.

    Where `params`, the weights on the mesh, are shapes, the result is shapes, types and shardings.
    """
    abstract = meshes.is_abstract(params)
    reference = None
    if task.teacher_text_count and abstract:
        shape = (task.teacher_text_count, task.clip.config.projection_width)
        reference = meshes.replicate(mesh, jax.ShapeDtypeStruct(shape, np.float32))
    elif task.teacher_text_count:
        reference = jax.device_put(task.teacher_features(params), meshes.sharding(mesh))
    tokens = task.template_tokens
    numbers = jax.ShapeDtypeStruct((len(seeds),), np.int32) if abstract else np.asarray(seeds, np.int32)
    return StepInputs(
        params=params,
        texts=TrainingTexts(
            text=place_text(mesh, task, params, training=True),
            reference=reference,
            template_tokens=None if tokens is None else _place_packed(mesh, tokens, abstract=abstract),
        ),
        constants=meshes.device_put(mesh, learnables.get(CONSTANTS, {}), meshes.RUN),
        seeds=meshes.device_put(mesh, numbers, meshes.RUN),
    )


def place_text(mesh: Mesh, task: Task, params: Params, *, training: bool = False) -> Text:
    """What stands for a task's classes, on the mesh.

    That is the text tower's features, computed here, where no learnable changes them. Else it is the tokens, split over
    devices, and packed; not packed for steps of `training` with dropout in the text tower, which draws for each text.
    Where `params` are shapes, the result is shapes, types and shardings.
    """
    abstract = meshes.is_abstract(params)
    if not task.classifier.changes_text(task.shapes):
        if abstract:
            shape = (len(task.texts), task.clip.config.projection_width)
            return meshes.replicate(mesh, jax.ShapeDtypeStruct(shape, np.float32))
        features = task.text_input(params, task.init())
        return jax.device_put(features, meshes.sharding(mesh))
    if training and task.classifier.drops_text(task.shapes):
        tokens = meshes.shapes(task.tokens) if abstract else task.tokens
        divides = tokens.ids.shape[0] % mesh.shape[meshes.DATA] == 0
        return meshes.device_put(mesh, tokens, meshes.DATA if divides else None)
    return _place_packed(mesh, task.text, abstract=abstract)


def _place_packed(mesh: Mesh, text: PackedTokens, *, abstract: bool) -> PackedTokens:
    text = meshes.shapes(text) if abstract else text
    split = meshes.DATA if text.ids.shape[0] % mesh.shape[meshes.DATA] == 0 else None
    # All arrays but the order have an axis of shards.
    placed = meshes.device_put(mesh, dataclasses.replace(text, order=text.ends), split)
    return dataclasses.replace(placed, order=meshes.replicate(mesh, text.order))


# The loss: a method's, or a student's divergence from its teacher, which reads no label.

# `images`, `labels`, `mask`, and for a student `teacher`.
Batch = Mapping[str, jax.Array]
TEACHER = "teacher"


def divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """`KL(softmax teacher ‖ softmax student)` of logits `[…, C]`, in nats: `[…]`, float32."""
    log_p = jax.nn.log_softmax(teacher.astype(jnp.float32))
    log_q = jax.nn.log_softmax(student.astype(jnp.float32))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


# Loss, share of correct images, and the gradient that a step takes.
Gradient = tuple[jax.Array, jax.Array, Learnables]


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

    def single(*arguments: Any) -> Any:
        picked = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*picked))

    return single


def loss_and_gradient(
    static: StepStatic, inputs: StepInputs, learnables: Learnables, batch: Batch, rng: jax.Array
) -> Gradient:
    """Loss, share of correct images, and the gradient that a step takes, of one run.

    Constants of `inputs` have no axis of runs here. `batch` has `images`, normalised, `labels` and `mask`; images that
    the mask drops do not count. With a teacher's logits, `teacher [B, C]`, the loss is the divergence from these, and
    no label is read.
    """
    classifier = static.classifier
    taught = TEACHER in batch
    labels = batch[TEACHER].argmax(-1) if taught else batch["labels"]
    mask = batch["mask"]

    def mean_losses(learnables: Learnables) -> tuple[dict[str, jax.Array], jax.Array]:
        terms, logits = classifier.losses(
            inputs.params,
            {**learnables, CONSTANTS: inputs.constants} if inputs.constants else learnables,
            batch["images"],
            labels,
            inputs.texts,
            rng=rng,
            mask=mask,
        )
        if taught:
            terms = {"divergence": divergence(batch[TEACHER], logits)}
        correct = (logits.argmax(-1) == labels) & mask
        return {name: mean_loss(term, mask) for name, term in terms.items()}, correct.sum() / jnp.maximum(mask.sum(), 1)

    if taught or classifier.method.combine is None:

        def objective(learnables: Learnables) -> tuple[jax.Array, jax.Array]:
            losses, accuracy = mean_losses(learnables)
            return functools.reduce(jnp.add, losses.values()), accuracy

        (loss, accuracy), gradient = jax.value_and_grad(objective, has_aux=True)(learnables)
        return loss, accuracy, gradient
    # One forward pass, and a backward pass for each term: its cotangent is 1, that of the others 0.
    losses, backward, accuracy = jax.vjp(mean_losses, learnables, has_aux=True)
    cotangents = {name: {other: jnp.float32(other == name) for other in losses} for name in losses}
    gradient = classifier.method.combine({name: backward(of_term)[0] for name, of_term in cotangents.items()})
    return functools.reduce(jnp.add, losses.values()), accuracy, gradient


@functools.partial(jax.jit, static_argnames="static", donate_argnames="state")
def train_step(
    static: StepStatic, inputs: StepInputs, state: TrainState, batch: Batch, scalars: StepScalars
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Forward, backward and update of `R` runs. `static` and `inputs` never change; `state` is donated.

    The batch has `images` uint8 `[R, B, size, size, 3]`, or float32 features `[R, B, D]` that stand for them; `labels`
    int32 `[R, B]`, `mask` bool `[R, B]`, and for students `teacher` float32 `[R, B, C]`.

    Returns:
      The new state, and `loss`, `accuracy` and `gradient_norm` of each run, `[R]` each.
    """
    method = static.classifier.method
    if batch["images"].dtype == jnp.uint8:
        batch = {**batch, "images": static.preprocessing.normalize(batch["images"])}

    def of_run(learnables: Learnables, constants: Learnables, seed: jax.Array, batch: Batch) -> Gradient:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        texts = inputs.texts
        if method.templates_in_training is not None:
            selected = method.templates_in_training(jax.random.key(seed), state.step)
            texts = dataclasses.replace(texts, selected=selected)
        run_inputs = dataclasses.replace(inputs, texts=texts, constants=constants)
        return loss_and_gradient(static, run_inputs, learnables, batch, rng)

    every_run = over_runs(of_run, (0, 0, 0, 0), runs=scalars.learning_rate.shape[0], mesh=static.mesh)
    loss, accuracy, gradient = every_run(state.learnables, inputs.constants, inputs.seeds, batch)
    # The optimiser acts on each number by itself, so the runs' axis needs no care.
    decayed = method.decayed_weights(state.learnables, inputs.params)
    directions, momentum = method.optimizer(static.recipe).update(gradient, state.momentum, decayed)
    rate = scalars.learning_rate
    learnables = jax.tree.map(
        lambda p, v: p - rate.reshape((-1,) + (1,) * (p.ndim - 1)) * v, state.learnables, directions
    )
    average = state.average
    weight = scalars.weight
    if average is not None and weight is not None:
        average = jax.tree.map(lambda a, p: a + weight * p, average, learnables)
    state = TrainState(learnables, momentum, state.step + 1, average)
    squares = [jnp.square(g).sum(range(1, g.ndim)) for g in jax.tree.leaves(gradient)]
    metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": jnp.sqrt(sum(squares))}
    if static.mesh is None:
        return state, metrics
    return meshes.constrain(static.mesh, state, meshes.RUN), meshes.constrain(static.mesh, metrics)
