"""The training step: inputs, loss and update of `R` independent runs in one program.

Arrays of the runs have a leading axis `R`, vectorised with `vmap`. All runs share the frozen weights.
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
from clipbias.training import placement
from clipbias.tuning import Recipe, Task
from clipbias.tuning.method import CONSTANTS, Learnables, Method, without_constants
from clipbias.tuning.recipe import EPOCHS
from clipbias.tuning.task import Classifier, Text, TrainingTexts, mean_loss


@dataclasses.dataclass(frozen=True)
class StepStatic:
    """Static arguments of the step. Hashable: trainings with equal ones share one compiled program."""

    classifier: Classifier
    preprocessing: Preprocessing
    recipe: Recipe
    mesh: Mesh | None = None

    @classmethod
    def of(cls, task: Task, recipe: Recipe, mesh: Mesh | None = None) -> "StepStatic":
        # The step takes the learning rate as an argument, and no step knows how many follow. Constants in their place
        # here make recipes that differ in these alone equal, so that they share a program.
        recipe = dataclasses.replace(recipe, learning_rate=1.0, epochs=None, steps=None)
        return cls(task.classifier, task.clip.preprocessing, recipe, mesh)


@struct.dataclass
class StepInputs:
    """Inputs that no step changes: frozen weights and texts, which the runs share, and arrays of each run.

    `constants` are learnables without gradient, leading axis `R`; `seeds`, int32 `[R]`, key all random draws.
    """

    params: Params
    texts: TrainingTexts
    constants: Learnables
    seeds: jax.Array


@struct.dataclass
class TrainState:
    """State of a training: learnables `[R, …]` without constants, optimiser state, and the number of steps done.

    `average` is the weighted sum of the learnables at the ends of earlier epochs (`Method.average`).
    """

    learnables: Learnables
    opt_state: optax.OptState
    step: jax.Array
    average: Learnables | None = None


@struct.dataclass
class StepScalars:
    """Numbers of one step: `learning_rate [R]`, and the weight in the average of the learnables after the step."""

    # Traced arguments, not static ones: a rate per step, or per run, must not compile a program of its own.
    learning_rate: jax.Array
    weight: jax.Array | None = None


def init_state(method: Method, recipe: Recipe, learnables: Learnables) -> TrainState:
    """Returns the state before the first step; `learnables` have the leading axis `R`."""
    # Constants get no gradient: in the state they would be checkpointed, donated and decayed for nothing.
    learnables = without_constants(learnables)
    # Any number of epochs tells whether there is an average.
    average = jax.tree.map(jnp.zeros_like, learnables) if method.average(recipe.epochs or EPOCHS) is not None else None
    return TrainState(learnables, method.optimizer(recipe).init(learnables), jnp.zeros((), jnp.int32), average)


def place_inputs(mesh: Mesh, task: Task, params: Params, learnables: Learnables, seeds: Sequence[int]) -> StepInputs:
    """Places the inputs of a training that starts from `learnables`, leading axis `R`, on the mesh.

    Where `params`, the weights on the mesh, are shapes, the result has shapes, types and shardings in place of arrays.
    """
    # One function for both, so that a planned step is the step that runs, and JAX finds its program.
    abstract = placement.is_abstract(params)
    reference = None
    if task.teacher_text_count and abstract:
        reference = placement.abstract(mesh, (task.teacher_text_count, task.clip.config.projection_width), np.float32)
    elif task.teacher_text_count:
        # The frozen teacher's text features never change: one forward pass here, none in a step.
        reference = jax.device_put(task.teacher_features(params), placement.sharding(mesh))
    tokens = task.template_tokens
    numbers = jax.ShapeDtypeStruct((len(seeds),), np.int32) if abstract else np.asarray(seeds, np.int32)
    return StepInputs(
        params=params,
        texts=TrainingTexts(
            text=place_text(mesh, task, params, training=True),
            reference=reference,
            template_tokens=None if tokens is None else _place_packed(mesh, tokens, abstract=abstract),
        ),
        constants=placement.device_put(mesh, learnables.get(CONSTANTS, {}), placement.RUN),
        seeds=placement.device_put(mesh, numbers, placement.RUN),
    )


def place_text(mesh: Mesh, task: Task, params: Params, *, training: bool = False) -> Text:
    """Places the texts of a task's classes on the mesh: features where no learnable changes them, else tokens."""
    abstract = placement.is_abstract(params)
    # The frozen text tower runs once, here, and no step contains it.
    if not task.classifier.changes_text(task.shapes):
        if abstract:
            shape = (len(task.texts), task.clip.config.projection_width)
            return placement.replicate(mesh, jax.ShapeDtypeStruct(shape, np.float32))
        return jax.device_put(task.text_input(params, task.init()), placement.sharding(mesh))
    # Packed texts share the keys and values of their common beginning. Dropout draws anew for each text, so they have
    # none in common.
    if training and task.classifier.drops_text(task.shapes):
        tokens = placement.shapes(task.tokens) if abstract else task.tokens
        divides = tokens.ids.shape[0] % mesh.shape[placement.DATA] == 0
        return placement.device_put(mesh, tokens, placement.DATA if divides else None)
    return _place_packed(mesh, task.text, abstract=abstract)


def _place_packed(mesh: Mesh, tokens: PackedTokens, *, abstract: bool) -> PackedTokens:
    # All arrays have a leading axis of shards, one for each device along `data`, except the order of the classes, which
    # every device needs whole. Texts with another number of shards (templates) are replicated.
    tokens = placement.shapes(tokens) if abstract else tokens
    split = placement.DATA if tokens.ids.shape[0] % mesh.shape[placement.DATA] == 0 else None
    placed = placement.device_put(mesh, dataclasses.replace(tokens, order=tokens.ends), split)
    return dataclasses.replace(placed, order=placement.replicate(mesh, tokens.order))


# `images`, `labels`, `mask`, and for a student `teacher`, the logits of its teacher.
Batch = Mapping[str, jax.Array]
TEACHER_LOGITS = "teacher"


def divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """Returns `KL(softmax teacher ‖ softmax student)` of logits `[…, C]`, in nats: `[…]`, float32."""
    # Differences of log-softmaxes, since a quotient of small probabilities would be 0/0.
    log_p = jax.nn.log_softmax(teacher.astype(jnp.float32))
    log_q = jax.nn.log_softmax(student.astype(jnp.float32))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


# Loss, share of correct images, and the gradient that a step takes.
Gradient = tuple[jax.Array, jax.Array, Learnables]


def over_runs(
    function: Callable[..., Any], in_axes: Sequence[int | None], *, runs: int, mesh: Mesh | None = None
) -> Callable[..., Any]:
    """Vectorises a function over the runs' leading axis, where `in_axes` is 0."""
    # `vmap` and no loop: small products of several runs fill a device that a single run leaves idle, and the frozen
    # weights are read once for all.
    if mesh is not None:
        # Attention kernels ask for the mesh while they are traced, to run on each device's own images alone.
        function = placement.traced_on(mesh, function)
    if runs > 1:
        # `spmd_axis_name` lets sharding constraints within the function keep the runs' axis split.
        split = mesh is not None and runs % mesh.shape[placement.RUN] == 0
        return jax.vmap(function, tuple(in_axes), axis_size=runs, spmd_axis_name=placement.RUN if split else None)

    def single(*arguments: Any) -> Any:
        # Without `vmap`, whose axis of a single run costs a tenth of a step.
        of_run = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*of_run))

    return single


def loss_and_gradient(
    static: StepStatic, inputs: StepInputs, learnables: Learnables, batch: Batch, rng: jax.Array
) -> Gradient:
    """Returns loss, share of correct images, and gradient of one run; constants of `inputs` have no axis of runs.

    `batch` has `images`, normalised, `labels` and `mask`. With logits `teacher [B, C]` the loss is the divergence.
    """
    classifier = static.classifier
    taught = TEACHER_LOGITS in batch
    # A student reads no label: its accuracy is agreement with the teacher's predictions.
    labels = batch[TEACHER_LOGITS].argmax(-1) if taught else batch["labels"]
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
            terms = {"divergence": divergence(batch[TEACHER_LOGITS], logits)}
        correct = (logits.argmax(-1) == labels) & mask
        return {name: mean_loss(term, mask) for name, term in terms.items()}, correct.sum() / jnp.maximum(mask.sum(), 1)

    if taught or classifier.method.combine is None:

        def objective(learnables: Learnables) -> tuple[jax.Array, jax.Array]:
            # `reduce`, not `sum`, which would add the first term to a zero.
            losses, accuracy = mean_losses(learnables)
            return functools.reduce(jnp.add, losses.values()), accuracy

        (loss, accuracy), gradient = jax.value_and_grad(objective, has_aux=True)(learnables)
        return loss, accuracy, gradient
    # A method that combines the gradients of its terms (ProGrad) needs each by itself: one forward pass, and a backward
    # pass for each term, with cotangent 1 for this term and 0 for the others.
    losses, backward, accuracy = jax.vjp(mean_losses, learnables, has_aux=True)
    cotangents = {name: {other: jnp.float32(other == name) for other in losses} for name in losses}
    gradient = classifier.method.combine({name: backward(of_term)[0] for name, of_term in cotangents.items()})
    return functools.reduce(jnp.add, losses.values()), accuracy, gradient


@functools.partial(jax.jit, static_argnames="static", donate_argnames="state")
def train_step(
    static: StepStatic, inputs: StepInputs, state: TrainState, batch: Batch, scalars: StepScalars
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Computes forward pass, gradient and update of `R` runs.

    The batch has `images` uint8 `[R, B, size, size, 3]`, or float32 features `[R, B, D]` in their place; `labels` int32
    `[R, B]`, `mask` bool `[R, B]`, and for students `teacher` float32 `[R, B, C]`.

    Returns:
      The new state, and `loss`, `accuracy` and `gradient_norm` of each run, `[R]` each.
    """
    # `state` is donated: the new one takes its memory, since a step never looks back. Frozen weights are arguments; as
    # constants of the program they would be compiled into it.
    method = static.classifier.method
    # Images travel to the device as bytes, a quarter of float32, and are normalised there.
    if batch["images"].dtype == jnp.uint8:
        batch = {**batch, "images": static.preprocessing.normalize(batch["images"])}

    def of_run(learnables: Learnables, constants: Learnables, seed: jax.Array, batch: Batch) -> Gradient:
        # A key from seed and step alone: a resumed or re-sharded run draws the same numbers.
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        texts = inputs.texts
        if method.templates_in_training is not None:
            texts = dataclasses.replace(texts, selected=method.templates_in_training(jax.random.key(seed), state.step))
        run_inputs = dataclasses.replace(inputs, texts=texts, constants=constants)
        return loss_and_gradient(static, run_inputs, learnables, batch, rng)

    every_run = over_runs(of_run, (0, 0, 0, 0), runs=scalars.learning_rate.shape[0], mesh=static.mesh)
    loss, accuracy, gradient = every_run(state.learnables, inputs.constants, inputs.seeds, batch)
    # Optimisers act on each number by itself, so they need no `vmap`. They return directions without the learning rate,
    # which differs between runs: p ← p - rate · v, as torch's SGD scales its velocity.
    decayed = method.decayed_weights(state.learnables, inputs.params)
    directions, opt_state = method.optimizer(static.recipe).update(gradient, state.opt_state, decayed)
    rate = scalars.learning_rate
    learnables = jax.tree.map(
        lambda p, v: p - rate.reshape((-1,) + (1,) * (p.ndim - 1)) * v, state.learnables, directions
    )
    average = state.average
    weight = scalars.weight
    # A weight of 0 adds nothing, so that steps within an epoch and at its end are one program.
    if average is not None and weight is not None:
        average = jax.tree.map(lambda a, p: a + weight * p, average, learnables)
    state = TrainState(learnables, opt_state, state.step + 1, average)
    # Over all axes but that of the runs: each run has a norm of its own.
    squares = [jnp.square(g).sum(range(1, g.ndim)) for g in jax.tree.leaves(gradient)]
    metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": jnp.sqrt(sum(squares))}
    if static.mesh is None:
        return state, metrics
    # The new state lies as the old one did. Otherwise the next step would see other shardings and compile again.
    return placement.constrain(static.mesh, state, placement.RUN), placement.constrain(static.mesh, metrics)
