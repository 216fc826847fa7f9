"""This package's training step, as a way for `tools.benchmarks compare`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.training.settings import Recipe
from clipbias.training.step import init_state, train_step
from clipbias.tuning import Task
from tools.benchmarks import measure, model, relevancy_ways, steps, training
from tools.benchmarks.worker import Job

memory = relevancy_ways.memory


def load(job: Job) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """A way for `worker`: one training step; its first call compiles."""
    config, batch = model.geometry(job["geometry"], layers=job["layers"]), job["batch"]
    clip = relevancy_ways.clip_of(config, relevancy_ways.read_weights(Path(job["folder"]), config))
    names, options = model.class_names(job["classes"]), steps.options(job["option"])
    task = Task(clip, job["method"], names, dtype=job["dtype"], **options)
    start = task.init(0)
    text = jax.tree.map(jnp.asarray, task.fixed_text(clip.params, start))
    recipe = Recipe(0.0025, 10, 1, 1e-5, batch, 0.9, 5e-4)
    data = jax.device_put(
        {
            "images": model.random_images(config, 1, batch),
            "labels": training.labels(job)[None],
            "mask": np.ones((1, batch), bool),
        }
    )
    rate = jnp.full(1, recipe.learning_rate)
    state = init_state(recipe, jax.tree.map(lambda leaf: jnp.array(leaf)[None], start))
    jax.block_until_ready((clip.params, text, state, data, rate))
    program: Any = None

    def step() -> float:
        nonlocal state
        state, metrics = program(clip.params, text, state, data, rate)
        return float(metrics["loss"][0])

    def first() -> dict[str, Any]:
        nonlocal program
        arrays = (clip.params, text, state, data, rate)
        program = train_step.lower(task.classifier, clip.preprocessing, recipe, *arrays).compile()
        return {"program_bytes": measure.program_bytes(program), "loss": step()}

    return step, first
