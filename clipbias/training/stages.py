"""Trainings that follow one another, of a method with several stages; most have one.

Each stage has its own checkpoints and is done once they say so: a run that is killed goes on in the stage that it was
in, from the learnables that the one before it ended with.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipbias.clip.params import Params
from clipbias.training import mesh as meshes
from clipbias.training.answers import text_features
from clipbias.training.loop import Trained
from clipbias.training.step import place_text
from clipbias.tuning import Task
from clipbias.tuning.learnables import one_run, stack_runs
from clipbias.tuning.method import Learnables, Method

# Trains the stage of this number from these learnables, leading axis `R`.
TrainStage = Callable[[int, Learnables], tuple[Task, Trained]]


def train_stages(
    method: Method, count: int, start: Learnables, train_stage: TrainStage, *, params: Params, mesh: Mesh
) -> Trained:
    """Trains `count` stages of a method one after another; what is told of the training adds up.

    Args:
      method: whose stages they are.
      count: how many.
      start: of all runs, leading axis `R`, before the first stage.
      train_stage: trains one.
      params: the frozen weights on the mesh.
      mesh: where to compute.
    """
    if count == 1 and not method.overrides("next_stage"):
        return train_stage(0, start)[1]
    found: list[Trained] = []
    learnables = _each(method, 0, start, None)
    for stage in range(count):
        task, trained = train_stage(stage, learnables)
        found.append(trained)
        last, learnables = stage + 1 == count, meshes.fetch(trained.learnables)
        text = None if last else _texts(task, params, learnables, mesh)
        learnables = _each(method, stage + 1, learnables, text)
    seconds = sum(one.seconds for one in found)
    waiting = sum(one.waiting_share * one.seconds for one in found) / max(seconds, 1e-9)
    return Trained(learnables, found[-1].losses, seconds, sum(one.steps for one in found), waiting)


def _each(method: Method, stage: int, learnables: Learnables, text: np.ndarray | None) -> Learnables:
    """`Method.next_stage` of each run, on the host."""
    runs = jax.tree.leaves(learnables)[0].shape[0]
    each = [
        method.next_stage(stage, one_run(learnables, run), None if text is None else text[run]) for run in range(runs)
    ]
    return stack_runs(jax.device_get(each))


def _texts(task: Task, params: Params, learnables: Learnables, mesh: Mesh) -> np.ndarray:
    """What the text tower makes of the texts under each run's learnables: `[R, S, C, d]`."""
    runs = jax.tree.leaves(learnables)[0].shape[0]
    text, placed = place_text(mesh, task, params), meshes.place(mesh, learnables, meshes.RUN)
    if isinstance(text, jax.Array):  # no learnable changes it
        features = jnp.broadcast_to(text, (runs, *text.shape))
    else:
        features = text_features(task.classifier, params, placed, text, runs=runs)
    return np.asarray(meshes.fetch(task.classifier.by_text(features)))
