"""One training step of several independent runs in one program.

Every array that belongs to a run has a leading axis `R`; the runs are vectorised with `vmap` and share the frozen
weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipbias.training import mesh as meshes
from clipbias.training.divergence import Batch, combines, loss_terms, targets
from clipbias.training.step_inputs import StepInputs, StepScalars, StepStatic, TrainState
from clipbias.tuning.classifier import mean_loss
from clipbias.tuning.method import CONSTANTS, Learnables

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
    static: StepStatic, inputs: StepInputs, learned: Learnables, batch: Batch, rng: jax.Array
) -> Gradient:
    """Loss, share of correct images, and the gradient that a step takes, of one run.

    Args:
      static: of the training.
      inputs: of one run: its constants have no axis of runs.
      learned: its learnables without constants.
      batch: `images`, normalised, `labels` and `mask`; images that the mask drops do not count. With a teacher's
        logits, `teacher [B, C]`, the loss is the divergence from these, and no label is read.
      rng: key of what is random in this step.
    """
    classifier = static.classifier
    labels = targets(batch)
    mask = batch["mask"]

    def terms(learned: Learnables) -> tuple[dict[str, jax.Array], jax.Array]:
        terms, logits = classifier.losses(
            inputs.params,
            {**learned, CONSTANTS: inputs.constants} if inputs.constants else learned,
            batch["images"],
            labels,
            inputs.texts,
            rng=rng,
            mask=mask,
        )
        terms = loss_terms(terms, logits, batch)
        correct = (logits.argmax(-1) == labels) & mask
        return {name: mean_loss(term, mask) for name, term in terms.items()}, correct.sum() / jnp.maximum(mask.sum(), 1)

    if not combines(classifier.method, batch):

        def objective(learned: Learnables) -> tuple[jax.Array, jax.Array]:
            losses, accuracy = terms(learned)
            return functools.reduce(jnp.add, losses.values()), accuracy

        (loss, accuracy), gradient = jax.value_and_grad(objective, has_aux=True)(learned)
        return loss, accuracy, gradient
    losses, pull, accuracy = jax.vjp(terms, learned, has_aux=True)
    single = {name: {other: jnp.float32(other == name) for other in losses} for name in losses}
    gradient = classifier.method.combine({name: pull(seed)[0] for name, seed in single.items()})
    return functools.reduce(jnp.add, losses.values()), accuracy, gradient


@functools.partial(jax.jit, static_argnames="static", donate_argnames="state")
def train_step(
    static: StepStatic, inputs: StepInputs, state: TrainState, batch: Batch, scalars: StepScalars
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Forward, backward and update of `R` runs.

    Args:
      static: what never changes.
      inputs: from `place_inputs`.
      state: donated.
      batch: `images` uint8 `[R, B, size, size, 3]`, or float32 features `[R, B, D]` that stand for them; `labels` int32
        `[R, B]`, `mask` bool `[R, B]`, and for students `teacher` float32 `[R, B, C]`.
      scalars: learning rates, and the weight in the average.

    Returns:
      The new state, and `loss`, `accuracy` and `gradient_norm` of each run, `[R]` each.
    """
    method = static.classifier.method
    if batch["images"].dtype == jnp.uint8:
        batch = {**batch, "images": static.preprocessing.normalize(batch["images"])}

    def of_run(learned: Learnables, constants: Learnables, seed: jax.Array, batch: Batch) -> Gradient:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        texts = inputs.texts
        if method.overrides("templates_in_training"):
            selected = method.templates_in_training(jax.random.key(seed), state.step)
            texts = dataclasses.replace(texts, selected=selected)
        run_inputs = dataclasses.replace(inputs, texts=texts, constants=constants)
        return loss_and_gradient(static, run_inputs, learned, batch, rng)

    every_run = over_runs(of_run, (0, 0, 0, 0), runs=scalars.learning_rate.shape[0], mesh=static.mesh)
    loss, accuracy, gradient = every_run(state.learnables, inputs.constants, inputs.seeds, batch)
    state = _updated(static, inputs, state, gradient, scalars)
    squares = [jnp.square(g).sum(range(1, g.ndim)) for g in jax.tree.leaves(gradient)]
    metrics = {"loss": loss, "accuracy": accuracy, "gradient_norm": jnp.sqrt(sum(squares))}
    if static.mesh is None:
        return state, metrics
    return meshes.constrain(static.mesh, state, meshes.RUN), meshes.constrain(static.mesh, metrics)


def _updated(
    static: StepStatic, inputs: StepInputs, state: TrainState, gradient: Learnables, scalars: StepScalars
) -> TrainState:
    """The state after a step. The optimiser acts on each number by itself, so the runs' axis needs no care."""
    method = static.classifier.method
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
    return TrainState(learnables, momentum, state.step + 1, average)
