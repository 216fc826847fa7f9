"""The jitted functions that training and evaluation call, with shapes and shardings in place of arrays.

They can be lowered and compiled for present or absent devices (`training.ahead`). Nothing is computed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias.clip.params import Params
from clipbias.training import mesh as meshes
from clipbias.training.answers import answers, image_features, images_per_step, logits, text_features
from clipbias.training.features import frozen_features
from clipbias.training.step import init_state, place_inputs, place_text, train_step
from clipbias.tuning import Recipe, Sampling, Task
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.method import Learnables
from clipbias.tuning.test_time_method import crops_of, mixes_crops


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with its arguments.

    Attributes:
      name: of the function.
      function: as `jax.jit` made it.
      arguments, options: shapes, types and shardings in place of arrays, and static values as they are.
    """

    name: str
    function: Any
    arguments: Sequence[Any]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def trace(self) -> Any:
        """As JAX traces it, to be lowered for any platform."""
        return self.function.trace(*self.arguments, **self.options)

    def lower(self) -> Any:
        """For the devices of its shardings."""
        return self.function.lower(*self.arguments, **self.options)


def training_program(
    task: Task, recipe: Recipe, *, rows: int, runs: int, mesh: Mesh, images: int = 0, parts: int = 1
) -> Program:
    """The training step of `runs` runs.

    Args:
      task: what is trained.
      recipe: the optimiser's.
      rows: images per step and run, over all devices.
      runs: runs trained side by side.
      mesh: where to compute.
      images: the training images of a run, where the method learns something for each.
      parts: parts in which the images of a step are taken.
    """
    shape, config, method = jax.ShapeDtypeStruct, task.clip.config, task.method
    sampling = sampling_of(method)
    # A method on features may learn something for each image; without images it has an axis of none.
    each = 0 if sampling is None else images
    learnables = jax.tree.map(
        lambda leaf: shape((runs, *(axis or each for axis in leaf.shape)), leaf.dtype), task.shapes
    )
    state = jax.eval_shape(lambda start: init_state(method, recipe, start), learnables)
    rows += -rows % mesh.shape[meshes.DATA]
    size = config.vision.image_size
    pixels: Any = shape((runs, rows, size, size, 3), np.uint8)
    if sampling is not None:
        width = config.projection_width if sampling.projected else config.vision.width
        pixels = shape((runs, rows, width), np.float32)
    batch = {"images": pixels, "labels": shape((runs, rows), np.int32), "mask": shape((runs, rows), np.bool_)}
    arguments = (
        *(task.classifier, task.clip.preprocessing, recipe),
        meshes.place_weights(mesh, task.clip.params, task.classifier.dtype, shapes=True),
        place_inputs(mesh, task, None, learnables, range(runs)),
        meshes.device_put(mesh, state, meshes.RUN),
        meshes.device_put(mesh, batch, meshes.RUN, meshes.DATA),
        meshes.device_put(mesh, shape((runs,), np.float32), meshes.RUN),
        None if state.average is None else meshes.replicate(mesh, shape((), np.float32)),
        mesh,
    )
    return Program("train_step", train_step, arguments, {"parts": parts})


def class_program(task: Task, *, runs: int, mesh: Mesh) -> Program:
    """The program that holds the class features of so many runs: for one image where they depend on it."""
    params, learnables = _placed(task, runs, mesh)
    text = place_text(mesh, task, None)
    if not task.method.conditional:
        return Program("text_features", text_features, (task.classifier, params, learnables, text), {"runs": runs})
    crops, width = crops_of(task.method), task.clip.config.projection_width
    batch, views = images_per_step(1, crops, mesh), (1 + crops,) if crops else ()
    own = runs if task.classifier.changes_vision(task.shapes) else 1
    features = jax.ShapeDtypeStruct((own, batch, *views, width), np.float32)
    features = meshes.device_put(mesh, features, meshes.RUN if own == runs else None, meshes.DATA)
    mask = meshes.device_put(mesh, jax.ShapeDtypeStruct((batch,), np.bool_), meshes.DATA)
    return Program("logits", logits, (task.classifier, params, learnables, features, text, mask), {"runs": runs})


def evaluation_programs(task: Task, *, batch: int, runs: int, mesh: Mesh) -> list[Program]:
    """The programs of an evaluation: for each batch of images, and once for all texts where they change.

    Args:
      task: what is evaluated.
      batch: images at a time, over all devices.
      runs: runs evaluated side by side.
      mesh: where to compute.
    """
    size, crops = task.clip.config.vision.image_size, crops_of(task.method)
    batch, views = images_per_step(batch, crops, mesh), (1 + crops,) if crops else ()
    kind = np.float32 if mixes_crops(task.method) else np.uint8
    pixels = meshes.device_put(mesh, jax.ShapeDtypeStruct((batch, *views, size, size, 3), kind), meshes.DATA)
    own = runs if task.classifier.changes_vision(task.shapes) else 1
    arguments = (task.classifier, task.clip.preprocessing, *_placed(task, own, mesh), pixels)
    options = {"runs": own, "mesh": mesh}
    programs = [Program("image_features", image_features, arguments, options)]
    images = jax.eval_shape(lambda *dynamic: image_features(*arguments[:2], *dynamic, **options), *arguments[2:])
    images = meshes.device_put(mesh, images, meshes.RUN, meshes.DATA)
    params, learnables = _placed(task, runs, mesh)
    text: Any = place_text(mesh, task, None)
    if not task.method.conditional:
        if task.classifier.changes_text(task.shapes):
            programs.append(class_program(task, runs=runs, mesh=mesh))
            width = task.clip.config.projection_width
            text = meshes.device_put(mesh, jax.ShapeDtypeStruct((runs, len(task.texts), width), np.float32), meshes.RUN)
        else:
            text = meshes.replicate(mesh, jax.ShapeDtypeStruct((1, *text.shape), text.dtype))
    mask = meshes.device_put(mesh, jax.ShapeDtypeStruct((batch,), np.bool_), meshes.DATA)
    temperatures = meshes.replicate(mesh, jax.ShapeDtypeStruct((runs,), np.float32))
    labels = meshes.device_put(mesh, jax.ShapeDtypeStruct((batch,), np.int32), meshes.DATA)
    given = (task.classifier, params, learnables, images, text, mask, temperatures, labels)
    return [*programs, Program("answers", answers, given, {"runs": runs})]


def features_program(task: Task, sampling: Sampling, *, batch: int, mesh: Mesh) -> Program:
    """Features of training images from the frozen vision tower, for a method that is made of them."""
    clip, size, dtype = task.clip, task.clip.config.vision.image_size, task.classifier.dtype
    images = meshes.device_put(mesh, jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8), meshes.DATA)
    params = meshes.place_weights(mesh, clip.params, dtype, shapes=True)
    arguments = (clip.config, clip.preprocessing, params, images)
    return Program("frozen_features", frozen_features, arguments, {"dtype": dtype, "projected": sampling.projected})


def _placed(task: Task, runs: int, mesh: Mesh) -> tuple[Params, Learnables]:
    """Shapes, types and shardings of the frozen weights and of the learnables of so many runs."""
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype), task.shapes)
    params = meshes.place_weights(mesh, task.clip.params, task.classifier.dtype, shapes=True)
    return params, meshes.device_put(mesh, stacked, meshes.RUN)
