"""The memory that an evaluation of several runs needs, and the task that fits it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias.clip.params import Params
from clipbias.training import mesh as meshes
from clipbias.training.answers import logits, text_features
from clipbias.training.evaluator import images_per_step
from clipbias.training.plan import CHUNKS, USABLE, device_limit, needed_bytes
from clipbias.training.step import place_text
from clipbias.tuning import Task
from clipbias.tuning.method import Learnables
from clipbias.tuning.test_time_method import crops_of, mixes_crops


def fit_evaluation(make: Callable[..., Task], *, runs: int, mesh: Mesh, limit: int | None = None) -> Task:
    """The task whose class features of all runs fit the memory, computed in as few parts as possible.

    Args:
      make: binds the task, given `chunks`.
      runs: runs evaluated side by side.
      mesh: where to compute.
      limit: bytes of one device; `None` asks the device.
    """
    task = make()
    if not task.classifier.changes_text(task.shapes):
        return task  # the tower ran once, and `Task` sees to its size
    limit = device_limit() if limit is None else limit
    for chunks in (1, *(n for n in CHUNKS if 1 < n <= len(task.class_names))):
        task = make(chunks=chunks) if chunks > 1 else make()
        if not limit or class_bytes(task, runs=runs, mesh=mesh) <= USABLE * limit:
            break
    return task


def class_bytes(task: Task, *, runs: int, mesh: Mesh) -> int:
    """Bytes of one device that the class features of so many runs need, for each image where they depend on it."""
    if task.method.conditional:
        arguments, options = answer_arguments(task, batch=1, runs=runs, mesh=mesh)
        return needed_bytes(logits, *arguments, **options)
    params, learnables = placed_shapes(task, runs, mesh)
    return needed_bytes(text_features, task.classifier, params, learnables, place_text(mesh, task, None), runs=runs)


def answer_arguments(task: Task, *, batch: int, runs: int, mesh: Mesh) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Shapes, types and shardings of what `logits` is called with by a method whose texts depend on the image."""
    own = runs if task.classifier.changes_vision(task.shapes) else 1
    crops, width = crops_of(task.method), task.clip.config.projection_width
    batch = images_per_step(batch, crops, mesh)
    views = (1 + crops,) if crops else ()
    shape = jax.ShapeDtypeStruct((own, batch, *views, width), np.float32)
    features = meshes.place(mesh, shape, meshes.RUN if own == runs else None, meshes.DATA)
    mask = meshes.place(mesh, jax.ShapeDtypeStruct((batch,), np.bool_), meshes.DATA)
    params, learnables = placed_shapes(task, runs, mesh)
    return (task.classifier, params, learnables, features, place_text(mesh, task, None), mask), {"runs": runs}


def image_arguments(task: Task, *, batch: int, runs: int, mesh: Mesh) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Shapes, types and shardings of what `image_features` is called with."""
    runs = runs if task.classifier.changes_vision(task.shapes) else 1
    size = task.clip.config.vision.image_size
    crops = crops_of(task.method)
    batch = images_per_step(batch, crops, mesh)
    views = (1 + crops,) if crops else ()
    kind = np.float32 if mixes_crops(task.method) else np.uint8
    images = meshes.place(mesh, jax.ShapeDtypeStruct((batch, *views, size, size, 3), kind), meshes.DATA)
    params, learnables = placed_shapes(task, runs, mesh)
    return (task.classifier, task.clip.preprocessing, params, learnables, images), {"runs": runs, "mesh": mesh}


def placed_shapes(task: Task, runs: int, mesh: Mesh) -> tuple[Params, Learnables]:
    """Shapes, types and shardings of the frozen weights and of the learnables of so many runs."""
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype), task.shapes)
    params = meshes.place_weights(mesh, task.clip.params, task.classifier.dtype, shapes=True)
    return params, meshes.place(mesh, stacked, meshes.RUN)
