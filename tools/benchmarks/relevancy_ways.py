"""Relevancy with this package, in the ways that `tools.benchmarks relevancy` compares."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from clipbias.clip import Clip, convert
from clipbias.clip.config import ClipConfig, to_hugging_face
from clipbias.clip.params import Params, empty_params
from clipbias.clip.preprocess import Preprocessing
from clipbias.clip.tensors import open_safetensors
from clipbias.errors import ClipbiasError
from clipbias.explain.relevancy import relevancy
from clipbias.io import write_tensors, write_text
from clipbias.tuning import Task
from tests.reference.plain_relevancy import plain_relevancy
from tools.benchmarks import flops, measure, model
from tools.benchmarks.steps import options as method_options
from tools.benchmarks.worker import Job, process_memory

WEIGHTS, INPUTS = "model.safetensors", "inputs-{batch}.safetensors"
OPTIONS = ("recompute", "chunk")  # of `clipbias.relevancy`, as ways with a number


def bind(config: ClipConfig, params: Params, job: Job) -> Task:
    """The job's method, bound to as many classes as there are images: every pair has its own."""
    names = model.class_names(job["batch"])
    return Task(clip_of(config, params), job["method"], names, dtype=job["dtype"], **method_options(job["option"]))


def clip_of(config: ClipConfig, params: Params) -> Clip:
    """A model with these weights, and a tokenizer that needs no files."""
    tokenizer = model.WordTokenizer(config.text.vocabulary_size)
    return Clip(params, config, tokenizer, Preprocessing(config.vision.image_size), "random", "random")


def write_weights(folder: Path, config: ClipConfig) -> None:
    """Random weights and their geometry under Hugging Face's names."""
    clip = model.random_clip(config)
    write_tensors(folder / WEIGHTS, convert.to_tensors(config, clip.params), {"format": "pt"})
    write_text(folder / "config.json", json.dumps(to_hugging_face(config)))


def read_weights(folder: Path, config: ClipConfig) -> Params:
    """What `write_weights` wrote, on the default device."""
    with open_safetensors(folder / WEIGHTS) as tensors:
        return jax.device_put(convert.from_tensors(config, tensors, where=str(folder)))


def write_inputs(job: Job, task: Task, learnables: Any) -> None:
    """Images, tokens and learnables, for ways that know nothing of this package."""
    images = task.clip.preprocessing.normalize(model.random_images(task.clip.config, job["batch"]))
    arrays = {"images": images, "ids": task.tokens.ids, "eos": task.tokens.eos, **learnables}
    path = Path(job["folder"]) / INPUTS.format(batch=job["batch"])
    write_tensors(path, {name: np.array(value, order="C") for name, value in arrays.items()}, {})


def options_of(way: str) -> dict[str, Any]:
    """The options of `clipbias.relevancy` that a way names: `{"recompute": 3}` for `recompute=3`.

    Raises:
      ClipbiasError: there is no such way.
    """
    name, _, number = way.partition("=")
    if name in OPTIONS and number.isdecimal() and int(number):
        return {name: int(number)}
    if way not in ("streaming", "plain", "forward"):
        raise ClipbiasError(
            f"there is no way {way!r}; choose from streaming, recompute=N, chunk=N, plain, forward, and with PyTorch "
            "torch, torch-per-pair, torch-forward."
        )
    return {}


def program(way: str, task: Task) -> Callable[[Params, Any, jax.Array], Any]:
    """What a way computes, from weights, learnables and images `[B, R, R, 3]`; image `i` is explained for class `i`."""
    targets, options = jnp.arange(len(task.class_names)), options_of(way)
    if way == "forward":
        return task.logits
    if way == "plain":
        return lambda params, learnables, images: plain_relevancy(task, params, learnables, images, targets)
    return lambda params, learnables, images: relevancy(task, params, learnables, images, targets, **options)


def load(job: Job) -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    """A way for `worker`: its first call compiles, and writes the maps to the job's folder."""
    config, folder = model.geometry(job["geometry"], layers=job["layers"]), Path(job["folder"])
    task = bind(config, read_weights(folder, config), job)
    run = jax.jit(program(job["way"], task))
    with safetensors.safe_open(folder / INPUTS.format(batch=job["batch"]), framework="numpy") as file:
        images = jnp.asarray(file.get_tensor("images"))
    arguments = (task.clip.params, task.init(0), images)
    jax.block_until_ready(arguments)
    compiled: Any = None

    def first() -> dict[str, Any]:
        nonlocal compiled
        compiled = run.lower(*arguments).compile()
        found = jax.block_until_ready(compiled(*arguments))
        if job["way"] != "forward":
            maps = {"vision": np.asarray(found.vision), "text": np.asarray(found.text)}
            write_tensors(folder / f"maps-{job['way']}-{job['batch']}.safetensors", maps, {})
        return {"program_bytes": measure.program_bytes(compiled)}

    return lambda: jax.block_until_ready(compiled(*arguments)), first


def memory() -> tuple[int, int]:
    """Bytes in use, now and at most: of the accelerator where it tells, else of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["bytes_in_use"]), int(stats["peak_bytes_in_use"])
    return process_memory()


def planned_bytes(config: ClipConfig, ways: Sequence[str], job: Job) -> dict[str, int]:
    """What each way's program needs besides its arguments, as the compiler plans it. Nothing is computed."""
    # Pages of zeros that nobody writes to take no memory.
    task = bind(config, empty_params(config), job)
    images = jax.ShapeDtypeStruct((job["batch"], config.vision.image_size, config.vision.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda: task.clip.params)
    return {
        way: measure.program_bytes(jax.jit(program(way, task)).lower(shapes, task.shapes, images).compile())
        for way in ways
    }


def needed(task: Task, learnables: Any) -> tuple[int, int]:
    """FLOP of the pairs' forward pass, and of their relevancy: gradients reach every layer's attention."""
    adaptation, config, batch = task.method.adapt(learnables), task.clip.config, len(task.class_names)
    prompts = 0 if adaptation.vision_prompts is None else adaptation.vision_prompts.shape[1]
    forward = flops.vision(config, batch, prompts=prompts) + flops.text(config, task.tokens, task.text.shared)
    explained = flops.vision(config, batch, prompts=prompts, backward_from=0)
    return forward, explained + flops.text(config, task.tokens, 0, backward_from=0)
