"""Training steps on several devices of this process."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clipbias.data import Split
from clipbias.training import mesh as meshes
from clipbias.training.loop import Run, place_text
from clipbias.training.settings import Recipe
from clipbias.training.step import init_state, train_step
from clipbias.tuning import Task
from tools.benchmarks import measure, model
from tools.benchmarks.cost_model import training_step
from tools.benchmarks.hlo import collectives
from tools.benchmarks.steps import options

NO_IMAGES = Split((), np.zeros(0, np.int64), lambda _: b"")


class ShardedStep:
    """A compiled training step of one run with images and classes split over a mesh's `data` axis."""

    def __init__(self, task: Task, mesh: Mesh, batch: int) -> None:
        """Compiles the step; a batch that does not divide is filled up and masked, as in training."""
        clip, recipe = task.clip, Recipe(0.0025, 10, 1, 1e-5, batch, 0.9, 5e-4)
        start = jax.tree.map(lambda leaf: np.asarray(leaf)[None], task.init(0))
        params = meshes.replicate(mesh, clip.params)
        text, _ = place_text(mesh, [Run(task, NO_IMAGES, 0)], params, start)
        filled = batch + -batch % mesh.shape[meshes.DATA]
        data = {
            "images": model.random_images(clip.config, 1, filled),
            "labels": np.arange(filled, dtype=np.int32)[None] % len(task.class_names),
            "mask": np.arange(filled)[None] < batch,
        }
        rate = meshes.place(mesh, np.full(1, recipe.learning_rate, np.float32), meshes.RUN)
        self._state = meshes.place(mesh, init_state(recipe, start), meshes.RUN)
        self._others = (meshes.place_batch(mesh, data), rate)
        self._fixed = (params, text)
        arrays = (*self._fixed, self._state, *self._others)
        self.program = train_step.lower(task.classifier, clip.preprocessing, recipe, *arrays).compile()

    def __call__(self) -> jax.Array:
        """Runs the step; returns its loss `[1]`."""
        self._state, metrics = self.program(*self._fixed, self._state, *self._others)
        return metrics["loss"]


def measured_step(task: Task, devices: int, batch: int, repeats: int) -> dict[str, Any]:
    """Collectives of the compiled program, loss, and seconds beside what the model counts."""
    step = ShardedStep(task, meshes.make_mesh(data=devices), batch)
    loss = float(step()[0])
    return {
        "devices": devices,
        "batch": batch,
        "classes": len(task.class_names),
        "seconds": measure.in_turn({"step": step}, repeats)["step"],
        "loss": loss,
        "program_bytes": measure.program_bytes(step.program),
        "collectives": collectives(step.program.as_text() or ""),
        "work": dataclasses.asdict(training_step(task, batch, devices)),
    }


def sharded_steps(
    devices: int,
    *,
    geometry: str,
    layers: int,
    method: str,
    option: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    dtype: str,
    repeats: int,
) -> list[dict[str, Any]]:
    """Steps over `devices`, one for each `(batch, classes)` of `sizes`."""
    clip = model.random_clip(model.geometry(geometry, layers=layers))
    return [
        measured_step(
            Task(clip, method, model.class_names(classes), dtype=dtype, groups=devices, **options(list(option))),
            devices,
            batch,
            repeats,
        )
        for batch, classes in sizes
    ]


def dispatch_seconds(repeats: int) -> float:
    """Of a step with next to nothing to compute: what the host needs to start one."""
    task = Task(model.random_clip(model.geometry("tiny")), "ivlp", model.class_names(2))
    return measure.in_turn({"step": ShardedStep(task, meshes.single_device(), 1)}, max(repeats, 20))["step"]
