"""The compiled functions that a pack's training and evaluation call, and what each is given: shapes and shardings.

They can be lowered and compiled for devices that are there or not (`training.topology`); nothing is computed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias.training import mesh as meshes
from clipbias.training.answers import answers, image_features, text_features, verdicts
from clipbias.training.evaluation_plan import image_arguments, placed_shapes
from clipbias.training.features import frozen_features
from clipbias.training.plan import flop, step_arguments
from clipbias.training.step import place_text, train_step
from clipbias.tuning import Recipe, Sampling, Task


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

    def compile(self) -> Any:
        """For the devices of its shardings."""
        return self.function.lower(*self.arguments, **self.options).compile()

    @property
    def flop(self) -> int:
        """See `plan.flop`."""
        return flop(self.function, *self.arguments, **self.options)


def training_program(
    task: Task, recipe: Recipe, *, rows: int, runs: int, mesh: Mesh, images: int, parts: int = 1
) -> Program:
    """The training step that takes its images in so many parts; the other arguments as in `plan.plan_step`."""
    arguments = step_arguments(task, recipe, rows=rows, runs=runs, mesh=mesh, images=images)
    return Program("train_step", train_step, arguments, {"parts": parts})


def evaluation_programs(task: Task, *, batch: int, runs: int, mesh: Mesh, judged: bool = False) -> list[Program]:
    """What an evaluation of so many runs calls for each batch of images, and once for all texts where they change.

    Args:
      task: what is evaluated.
      batch: images at a time, over all devices.
      runs: runs evaluated side by side.
      mesh: where to compute.
      judged: as trials are, by labels of validation images.
    """
    arguments, options = image_arguments(task, batch=batch, runs=runs, mesh=mesh)
    programs = [Program("image_features", image_features, arguments, options)]
    images = jax.eval_shape(lambda *dynamic: image_features(*arguments[:2], *dynamic, **options), *arguments[2:])
    images = meshes.place(mesh, images, meshes.RUN, meshes.DATA)
    params, learnables = placed_shapes(task, runs, mesh)
    text: Any = place_text(mesh, task, None)
    if not task.method.conditional:
        if task.classifier.changes_text(task.shapes):
            of_texts = (task.classifier, params, learnables, text)
            programs.append(Program("text_features", text_features, of_texts, {"runs": runs}))
            width = task.clip.config.projection_width
            text = meshes.place(mesh, jax.ShapeDtypeStruct((runs, len(task.texts), width), np.float32), meshes.RUN)
        else:
            text = meshes.replicate(mesh, jax.ShapeDtypeStruct((1, *text.shape), text.dtype))
    mask = meshes.place(mesh, jax.ShapeDtypeStruct((len(arguments[-1]),), np.bool_), meshes.DATA)
    given = (task.classifier, params, learnables, images, text, mask)
    if judged:
        labels = meshes.place(mesh, jax.ShapeDtypeStruct(mask.shape, np.int32), meshes.DATA)
        return [*programs, Program("verdicts", verdicts, (*given, labels), {"runs": runs})]
    temperatures = meshes.replicate(mesh, jax.ShapeDtypeStruct((runs,), np.float32))
    return [*programs, Program("answers", answers, (*given, temperatures), {"runs": runs})]


def features_program(task: Task, sampling: Sampling, *, batch: int, mesh: Mesh) -> Program:
    """What computes the frozen tower's features of training images, for a method that is made of these."""
    clip, size = task.clip, task.clip.config.vision.image_size
    images = meshes.place(mesh, jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8), meshes.DATA)
    dtype = task.classifier.dtype
    params = meshes.place_weights(mesh, clip.params, dtype, shapes=True)
    arguments = (clip.config, clip.preprocessing, params, images)
    options = {"dtype": dtype, "projected": sampling.projected}
    return Program("frozen_features", frozen_features, arguments, options)
