"""Relevancy maps of a class for each image in both towers, in several ways whose maps must agree.

Ways are `streaming` (`clipbias.relevancy` without options), `recompute=N` and `chunk=N` (its options), and `torch` and
`torch-per-pair` (`tools/benchmarks/relevancy_torch.py`).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Clip
from clipbias.errors import ClipbiasError
from clipbias.explain.relevancy import relevancy as maps
from clipbias.tuning import Task
from tools.benchmarks import measure, model, ways

WAYS = ("streaming", "recompute=1", "recompute=3")
TORCH_WAYS = ("torch", "torch-per-pair")
SETTINGS = ("geometry", "layers", "method", "option", "dtype")
memory = ways.device_memory


def relevancy(arguments: argparse.Namespace) -> dict[str, Any]:
    """A row per batch size and way.

    Raises:
      ClipbiasError: a way does not exist, fails, or has other maps than the first.
    """
    names = arguments.ways or WAYS
    for name in names:
        if name not in TORCH_WAYS:
            options_of(name)
    config = model.geometry(arguments.geometry, layers=arguments.layers)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for batch in arguments.batches:
            job = {name: getattr(arguments, name) for name in SETTINGS} | {"batch": batch}
            if set(names) & set(TORCH_WAYS):
                task = bind(model.write_weights(Path(folder), config), job)
                arrays = {"images": images_of(task), "ids": task.tokens.ids, "eos": task.tokens.eos, **task.init(0)}
                inputs = {name: np.array(value, order="C") for name, value in arrays.items()}
                job |= {"folder": folder, "inputs": inputs}
            modules = {name: "tools.benchmarks.relevancy_torch" if name in TORCH_WAYS else __name__ for name in names}
            jobs = [job | {"way": name, "module": module} for name, module in modules.items()]
            measurements = ways.measured(jobs, arguments.repeats, together=arguments.together)
            print(f"batch {batch}\n\n{ways.table(measurements)}")
            rows += [{"batch": batch, "seconds_per_pair": row["seconds"] / batch, **row} for row in measurements]
    name = f"relevancy, {arguments.method}, batch {', '.join(map(str, arguments.batches))}"
    return {"name": name, "device": jax.devices()[0].device_kind, "points": rows}


def options_of(way: str) -> dict[str, Any]:
    """The options of `clipbias.relevancy` that a way names: `{"recompute": 3}` for `recompute=3`.

    Raises:
      ClipbiasError: there is no such way.
    """
    name, _, number = way.partition("=")
    if name in ("recompute", "chunk") and number.isdecimal() and int(number):
        return {name: int(number)}
    if way != "streaming":
        raise ClipbiasError(
            f"there is no way {way!r}; choose from streaming, recompute=N, chunk=N, and with PyTorch torch, "
            "torch-per-pair."
        )
    return {}


def bind(clip: Clip, job: ways.Job) -> Task:
    """The job's method, bound to as many classes as there are images: image `i` is explained for class `i`."""
    names = model.class_names(job["batch"])
    return Task(clip, job["method"], names, dtype=job["dtype"], **model.options(job["option"]))


def images_of(task: Task) -> jax.Array:
    """`[B, R, R, 3]`."""
    images = model.random_images(task.clip.config, len(task.class_names))
    return jnp.asarray(task.clip.preprocessing.normalize(images))


def load(job: ways.Job) -> ways.Loaded:
    """A way for `ways`."""
    task = bind(model.random_clip(model.geometry(job["geometry"], layers=job["layers"])), job)
    targets = jnp.arange(job["batch"])
    options = options_of(job["way"])
    function = jax.jit(lambda params, learnables, images: maps(task, params, learnables, images, targets, **options))
    inputs = task.clip.params, task.init(0), images_of(task)
    jax.block_until_ready(inputs)
    program: Any = None

    def run() -> Any:
        return jax.block_until_ready(program(*inputs))

    def first() -> dict[str, Any]:
        nonlocal program
        program = function.lower(*inputs).compile()
        result = run()
        answer = [np.asarray(result.vision), np.asarray(result.text)]
        return measure.planned(program) | {"flop": measure.traced(function, *inputs), "answer": answer}

    return run, first
