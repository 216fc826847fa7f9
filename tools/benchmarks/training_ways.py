"""This package's training step, or its test of an image with its views, as a way for `tools.benchmarks compare`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip.precision import held
from clipbias.training import mesh as meshes
from clipbias.training.answers import image_features, logits
from clipbias.training.step import init_state, place_inputs, place_text, train_step
from clipbias.tuning import Recipe, Task
from clipbias.tuning.test_time_method import crops_of
from tools.benchmarks import measure, model, relevancy_ways, steps, training
from tools.benchmarks.worker import Job

memory = relevancy_ways.memory


def load(job: Job) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """A way for `worker`: one training step, or test of images with their views; its first call compiles."""
    config, batch = model.geometry(job["geometry"], layers=job["layers"]), job["batch"]
    clip = relevancy_ways.clip_of(config, relevancy_ways.read_weights(Path(job["folder"]), config))
    names, options = model.class_names(job["classes"]), steps.options(job["option"])
    task = Task(clip, job["method"], names, dtype=job["dtype"], **options)
    if crops_of(task.method):
        return test(task, model.random_views(config, batch, crops_of(task.method)))
    start, params = jax.tree.map(lambda leaf: jnp.array(leaf)[None], task.init(0)), held(clip.params, job["dtype"])
    given = place_inputs(meshes.single_device(), task, params, start, [0])
    recipe = task.method.recipe_for(Recipe(0.0025, 10, 1, 1e-5, batch, 0.9, 5e-4), 16)
    data = jax.device_put(
        {
            "images": model.random_images(config, 1, batch),
            "labels": training.labels(job)[None],
            "mask": np.ones((1, batch), bool),
        }
    )
    rate = jnp.full(1, recipe.learning_rate)
    state = init_state(task.method, recipe, start)
    # Of a method that averages its epochs, the step at the end of one.
    weight = None if state.average is None else jnp.ones(())
    jax.block_until_ready((params, given, state, data, rate))
    program: Any = None

    def step() -> float:
        nonlocal state
        state, metrics = program(params, given, state, data, rate, weight)
        return float(metrics["loss"][0])

    def first() -> dict[str, Any]:
        nonlocal program
        arrays = (params, given, state, data, rate, weight)
        program = train_step.lower(task.classifier, clip.preprocessing, recipe, *arrays).compile()
        return {"program_bytes": measure.program_bytes(program), "loss": step()}

    return step, first


def test(task: Task, views: np.ndarray) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """What an evaluation does with images and their views `[B, 1 + V, R, R, 3]`, from pixels to logits `[B, C]`."""
    params, mesh = task.clip.params, meshes.single_device()
    learnables = jax.tree.map(lambda leaf: jnp.array(leaf)[None], task.init(0))
    text, pixels, mask = place_text(mesh, task, params), jax.device_put(views), jnp.ones(len(views), bool)
    jax.block_until_ready((params, learnables, text, pixels))
    programs: list[Any] = []

    def compute() -> jax.Array:
        vision, head = programs
        return jax.block_until_ready(head(params, learnables, vision(params, learnables, pixels), text, mask))

    def first() -> dict[str, Any]:
        images = (task.classifier, task.clip.preprocessing, params, learnables, pixels)
        features = jax.eval_shape(image_features, *images, runs=1)
        programs.append(image_features.lower(*images, runs=1).compile())
        programs.append(logits.lower(task.classifier, params, learnables, features, text, mask, runs=1).compile())
        planned = max(measure.program_bytes(program) for program in programs)
        return {"program_bytes": planned, "logits": np.asarray(compute()[0]).tolist()}

    return compute, first
