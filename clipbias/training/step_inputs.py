"""What a training step takes: static settings, constant inputs, the state, and numbers that change from step to step.

Every array that belongs to a run has a leading axis `R`.
"""

import dataclasses
from collections.abc import Sequence

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
from clipbias.tuning.classifier import Classifier, Text, TrainingTexts
from clipbias.tuning.learnables import without_constants
from clipbias.tuning.method import CONSTANTS, Learnables, Method
from clipbias.tuning.recipe import EPOCHS


@dataclasses.dataclass(frozen=True)
class StepStatic:
    """What never changes in a training. Hashable: trainings with equal ones share one compiled program.

    Attributes:
      classifier: the method's mathematics.
      preprocessing: normalises images.
      recipe: the optimiser's.
      mesh: where the new state lies as the old one does, so that one program serves all steps, and the metrics lie on
        every device; `None` leaves that to the compiler.
    """

    classifier: Classifier
    preprocessing: Preprocessing
    recipe: Recipe
    mesh: Mesh | None = None


@struct.dataclass
class StepInputs:
    """Inputs that stay constant over training.

    Attributes:
      params: the frozen weights; no gradient of theirs is formed.
      texts: what stands for the classes and for a teacher; the runs share it.
      constants: the learnables that no step changes, leading axis `R`; empty where there are none.
      seeds: int32 `[R]`, of what is random in a step.
    """

    params: Params
    texts: TrainingTexts
    constants: Learnables
    seeds: jax.Array


@struct.dataclass
class TrainState:
    """What a step changes.

    Attributes:
      learnables: leading axis `R`, without their constants.
      momentum: the optimiser's state, named after that of the first optimiser.
      step: the number of steps done, one for all runs.
      average: the weighted sum of earlier epochs' learnables (`Method.average`), or `None`.
    """

    learnables: Learnables
    momentum: optax.OptState
    step: jax.Array
    average: Learnables | None = None


@struct.dataclass
class StepScalars:
    """Numbers of a step.

    Attributes:
      learning_rate: `[R]`.
      weight: of the learnables after this step in the average, 0 but at the end of an epoch; `None` without an average.
    """

    learning_rate: jax.Array
    weight: jax.Array | None = None


def init_state(method: Method, recipe: Recipe, learnables: Learnables) -> TrainState:
    """The state before the first step; `learnables` have the leading axis `R`."""
    learned = without_constants(learnables)
    average = None
    if method.average(recipe.epochs or EPOCHS) is not None:
        average = jax.tree.map(jnp.zeros_like, learned)
    return TrainState(learned, method.optimizer(recipe).init(learned), jnp.zeros((), jnp.int32), average)


def place_inputs(mesh: Mesh, task: Task, params: Params, learnables: Learnables, seeds: Sequence[int]) -> StepInputs:
    """The inputs of a training that starts from `learnables`, leading axis `R`, on the mesh.

    Args:
      mesh: the devices.
      task: what is trained.
      params: the frozen weights on the mesh. Of shapes in their place, only shapes, types and shardings are returned.
      learnables: whose constants are inputs.
      seeds: of the runs.
    """
    abstract = meshes.is_abstract(params)
    tokens = task.template_tokens
    numbers = jax.ShapeDtypeStruct((len(seeds),), np.int32) if abstract else np.asarray(seeds, np.int32)
    return StepInputs(
        params=params,
        texts=TrainingTexts(
            text=place_text(mesh, task, params, training=True),
            reference=_place_reference(mesh, task, params),
            template_tokens=None if tokens is None else _place_packed(mesh, tokens, abstract=abstract),
        ),
        constants=meshes.device_put(mesh, learnables.get(CONSTANTS, {}), meshes.RUN),
        seeds=meshes.device_put(mesh, numbers, meshes.RUN),
    )


def _place_reference(mesh: Mesh, task: Task, params: Params) -> jax.Array | None:
    """The text features of the method's frozen teacher, if it has one."""
    if not task.teacher_text_count:
        return None
    if meshes.is_abstract(params):
        shape = (task.teacher_text_count, task.clip.config.projection_width)
        return meshes.replicate(mesh, jax.ShapeDtypeStruct(shape, np.float32))
    return jax.device_put(task.teacher_features(params), meshes.sharding(mesh))


def place_text(mesh: Mesh, task: Task, params: Params, *, training: bool = False) -> Text:
    """What stands for a task's classes, on the mesh.

    That is the text tower's features, computed here, where no learnable changes them. Else it is the tokens, split over
    devices: packed, but for steps of `training` with dropout in the text tower, whose texts share no token. Of shapes
    in place of `params`, only shapes, types and shardings are returned.
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
