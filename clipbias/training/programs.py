"""The jitted functions that training and evaluation call, with shapes and shardings in place of arrays.

They can be lowered and compiled for present or absent devices (`training.ahead`). Nothing is computed.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import stages
from jax.sharding import Mesh

from clipbias.training import mesh as meshes
from clipbias.training.divergence import TEACHER
from clipbias.training.features import FeatureStatic, frozen_features
from clipbias.training.outcomes import (
    EvalInputs,
    EvalStatic,
    image_features,
    images_per_step,
    logits,
    make_evaluation,
    outcomes,
    text_features,
)
from clipbias.training.step import train_step
from clipbias.training.step_inputs import StepScalars, StepStatic, init_state, place_inputs
from clipbias.tuning import Recipe, Sampling, Task
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.test_time_method import crops_of, mixes_crops


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with its arguments.

    Attributes:
      name: of the function.
      function: as `jax.jit` made it.
      arguments: shapes, types and shardings in place of arrays, and static values as they are.
    """

    name: str
    function: stages.Wrapped
    arguments: Sequence[Any]

    def trace(self) -> stages.Traced:
        """As JAX traces it, to be lowered for any platform."""
        return self.function.trace(*self.arguments)

    def lower(self) -> stages.Lowered:
        """For the devices of its shardings."""
        return self.function.lower(*self.arguments)


@dataclasses.dataclass(frozen=True)
class StepShape:
    """Sizes of a training step.

    Attributes:
      rows: images per step and run, over all devices.
      runs: runs trained side by side, padding included.
      mesh: where to compute.
      images: the training images of a run, where the method learns something for each.
      taught: whether a teacher's logits stand in place of labels.
    """

    rows: int
    runs: int
    mesh: Mesh
    images: int = 0
    taught: bool = False


def training_program(task: Task, recipe: Recipe, size: StepShape) -> Program:
    """The training step of a task.

    Args:
      task: what is trained.
      recipe: the optimiser's.
      size: of the step.
    """
    shape = jax.ShapeDtypeStruct
    config = task.clip.config
    method = task.method
    runs = size.runs
    mesh = size.mesh
    sampling = sampling_of(method)
    # A method on features may learn something for each image; without images it has an axis of none.
    each = 0 if sampling is None else size.images
    learnables = jax.tree.map(
        lambda leaf: shape((runs, *(axis or each for axis in leaf.shape)), leaf.dtype), task.shapes
    )
    state = jax.eval_shape(lambda start: init_state(method, recipe, start), learnables)
    rows = size.rows + -size.rows % mesh.shape[meshes.DATA]
    side = config.vision.image_size
    pixels = shape((runs, rows, side, side, 3), np.uint8)
    if sampling is not None:
        width = config.projection_width if sampling.projected else config.vision.width
        pixels = shape((runs, rows, width), np.float32)
    batch = {"images": pixels, "labels": shape((runs, rows), np.int32), "mask": shape((runs, rows), np.bool_)}
    if size.taught:
        batch[TEACHER] = shape((runs, rows, len(task.class_names)), np.float32)
    static = StepStatic(task.classifier, task.clip.preprocessing, recipe, mesh)
    params = meshes.place_weights(mesh, task.clip.params, task.classifier.dtype, shapes=True)
    scalars = StepScalars(
        learning_rate=meshes.device_put(mesh, shape((runs,), np.float32), meshes.RUN),
        weight=None if state.average is None else meshes.replicate(mesh, shape((), np.float32)),
    )
    arguments = (
        static,
        place_inputs(mesh, task, params, learnables, range(runs)),
        meshes.device_put(mesh, state, meshes.RUN),
        meshes.device_put(mesh, batch, meshes.RUN, meshes.DATA),
        scalars,
    )
    return Program("train_step", train_step, arguments)


def class_program(task: Task, *, runs: int, mesh: Mesh) -> Program:
    """The program that holds the class features of so many runs: for one image where they depend on it."""
    static, inputs = _evaluation(task, runs, mesh)
    if not task.method.conditional:
        return Program("text_features", text_features, (static, inputs))
    crops = crops_of(task.method)
    width = task.clip.config.projection_width
    batch = images_per_step(1, crops, mesh)
    views = (1 + crops,) if crops else ()
    count = runs if task.classifier.changes_vision(task.shapes) else 1
    features = jax.ShapeDtypeStruct((count, batch, *views, width), np.float32)
    features = meshes.device_put(mesh, features, meshes.RUN if count == runs else None, meshes.DATA)
    mask = meshes.device_put(mesh, jax.ShapeDtypeStruct((batch,), np.bool_), meshes.DATA)
    return Program("logits", logits, (static, inputs, features, mask))


def evaluation_programs(task: Task, *, batch: int, runs: int, mesh: Mesh) -> list[Program]:
    """The programs of an evaluation: for each batch of images, and once for all texts where they change.

    Args:
      task: what is evaluated.
      batch: images at a time, over all devices.
      runs: runs evaluated side by side.
      mesh: where to compute.
    """
    size = task.clip.config.vision.image_size
    crops = crops_of(task.method)
    batch = images_per_step(batch, crops, mesh)
    views = (1 + crops,) if crops else ()
    kind = np.float32 if mixes_crops(task.method) else np.uint8
    pixels = meshes.device_put(mesh, jax.ShapeDtypeStruct((batch, *views, size, size, 3), kind), meshes.DATA)
    count = runs if task.classifier.changes_vision(task.shapes) else 1
    static, inputs = _evaluation(task, count, mesh)
    arguments = (static, inputs.params, inputs.learnables, pixels)
    programs = [Program("image_features", image_features, arguments)]
    images = jax.eval_shape(functools.partial(image_features, static), *arguments[1:])
    images = meshes.device_put(mesh, images, meshes.RUN, meshes.DATA)
    static, inputs = _evaluation(task, runs, mesh)
    if not task.method.conditional:
        text: Any = inputs.text
        if task.classifier.changes_text(task.shapes):
            programs.append(class_program(task, runs=runs, mesh=mesh))
            width = task.clip.config.projection_width
            text = meshes.device_put(mesh, jax.ShapeDtypeStruct((runs, len(task.texts), width), np.float32), meshes.RUN)
        else:
            text = meshes.replicate(mesh, jax.ShapeDtypeStruct((1, *text.shape), text.dtype))
        inputs = dataclasses.replace(inputs, text=text)
    mask = meshes.device_put(mesh, jax.ShapeDtypeStruct((batch,), np.bool_), meshes.DATA)
    labels = meshes.device_put(mesh, jax.ShapeDtypeStruct((batch,), np.int32), meshes.DATA)
    temperatures = meshes.replicate(mesh, jax.ShapeDtypeStruct((runs,), np.float32))
    return [*programs, Program("outcomes", outcomes, (static, inputs, images, mask, labels, temperatures))]


def features_program(task: Task, sampling: Sampling, *, batch: int, mesh: Mesh) -> Program:
    """Features of training images from the frozen vision tower, for a method that is made of them."""
    clip = task.clip
    size = task.clip.config.vision.image_size
    dtype = task.classifier.dtype
    images = meshes.device_put(mesh, jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8), meshes.DATA)
    params = meshes.place_weights(mesh, clip.params, dtype, shapes=True)
    static = FeatureStatic(clip.config, clip.preprocessing, dtype, sampling.projected)
    return Program("frozen_features", frozen_features, (static, params, images))


def _evaluation(task: Task, runs: int, mesh: Mesh) -> tuple[EvalStatic, EvalInputs]:
    """The arguments of an evaluation of so many runs, with shapes, types and shardings in place of arrays."""
    learnables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype), task.shapes)
    params = meshes.place_weights(mesh, task.clip.params, task.classifier.dtype, shapes=True)
    return make_evaluation(task, params, learnables, runs=runs, mesh=mesh)
