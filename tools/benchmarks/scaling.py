"""One training step on several devices of this process."""

from typing import Any

import jax
import numpy as np

from clipbias.training import mesh as meshes
from clipbias.training.loop import Run, place_text
from clipbias.training.settings import Recipe
from clipbias.training.step import init_state, train_step
from clipbias.tuning import Task
from tools.benchmarks import measure, model
from tools.benchmarks.processes import collectives
from tools.benchmarks.steps import options


def sharded_step(
    devices: int,
    *,
    geometry: str,
    layers: int,
    method: str,
    option: list[str],
    classes: int,
    batch: int,
    dtype: str,
    repeats: int,
) -> dict[str, Any]:
    """A step with images and classes split over `devices`: collectives of the compiled program, loss and seconds."""
    mesh = meshes.make_mesh(data=devices)
    clip = model.random_clip(model.geometry(geometry, layers=layers))
    task = Task(clip, method, model.class_names(classes), dtype=dtype, groups=devices, **options(option))
    params = meshes.replicate(mesh, clip.params)
    recipe = Recipe(0.0025, 10, 1, 1e-5, batch, 0.9, 5e-4)
    start = jax.tree.map(lambda leaf: np.asarray(leaf)[None], task.init(0))
    text, _ = place_text(mesh, [Run(task, None, 0)], params, start)
    data = meshes.place_batch(
        mesh,
        {
            "images": model.random_images(clip.config, 1, batch),
            "labels": np.arange(batch, dtype=np.int32)[None] % classes,
            "mask": np.ones((1, batch), bool),
        },
    )
    rate = meshes.place(mesh, np.full(1, recipe.learning_rate, np.float32), meshes.RUN)
    state = meshes.place(mesh, init_state(recipe, start), meshes.RUN)
    program = train_step.lower(task.classifier, clip.preprocessing, recipe, params, text, state, data, rate).compile()
    held = [state]

    def step() -> jax.Array:
        held[0], metrics = program(params, text, held[0], data, rate)
        return metrics["loss"]

    loss = float(step()[0])
    seconds = measure.in_turn({"step": step}, repeats)["step"]
    return {
        "devices": devices,
        "seconds": seconds,
        "loss": loss,
        "program_bytes": measure.program_bytes(program),
        "collectives": collectives(program.as_text()),
    }
