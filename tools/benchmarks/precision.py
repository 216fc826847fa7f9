"""What half precision keeps of what a method learns: changes of logits and gradients beside those of float32.

Learnables are moved from where training starts by noise of a size that it reaches; what counts is the direction in
which all logits change. On a CPU, what an accelerator's products round is rounded by hand: a "tensorfloat32" there, and
cuDNN's attention by XLA's products in half precision.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.clip import Clip, layers, products, vision
from clipbias.training import mesh as meshes
from clipbias.training.programs import training_program
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from tools.benchmarks import flops, model
from tools.benchmarks.steps import options

SIZES = (1e-3, 3e-3)
# Images and classes of the step whose memory and arithmetic is told; it is compiled and not run.
ROWS, CLASSES = 32, 100


def rounded(x: jax.Array) -> jax.Array:
    """To the 10 bits behind the point that TensorFloat32 has."""
    return jax.lax.reduce_precision(x, 8, 10)


@contextlib.contextmanager
def tensorfloat32() -> Iterator[None]:
    """Products with weights, and attention's queries, keys and values, rounded as an NVIDIA GPU does."""

    def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return rounded(x) @ rounded(kernel)

    attention = layers.fused_attention

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> jax.Array:
        return attention(rounded(q), rounded(k), rounded(v), causal=causal)

    with (
        mock.patch.object(layers, "multiply", multiply),
        mock.patch.object(vision, "multiply", multiply),
        mock.patch.object(layers, "fused_attention", attend),
    ):
        yield


@contextlib.contextmanager
def cudnn() -> Iterator[None]:
    """Attention of images as on an NVIDIA GPU: in half precision but for the row that is read out."""
    attend = functools.partial(layers.read_out_exactly, implementation="xla")
    with (
        mock.patch.object(layers, "cudnn_takes", lambda dtype, width: True),
        mock.patch.object(layers, "read_out_exactly", attend),
    ):
        yield


@contextlib.contextmanager
def one_part() -> Iterator[None]:
    """Tokens rounded to half precision before each product, instead of taken in two parts."""
    with mock.patch.object(products, "in_two_parts", products._in_one):
        yield


# What is compared: the compute type, and what is done to it.
WAYS: Mapping[str, tuple[str, Callable[[], Any]]] = {
    "float32": ("float32", contextlib.nullcontext),
    "tensorfloat32, rounded by hand": ("float32", tensorfloat32),
    "bfloat16": ("bfloat16", contextlib.nullcontext),
    "bfloat16, attention as by cuDNN": ("bfloat16", cudnn),
    "bfloat16, tokens in one part": ("bfloat16", one_part),
}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays as vectors, in float64."""
    a, b = (np.ravel(x).astype(np.float64) for x in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def changes(clip: Clip, arguments: argparse.Namespace, dtype: str) -> dict[str, np.ndarray]:
    """How the logits `[B, C]` change with the learnables' size, and the gradient at the smallest, as one vector."""
    task = Task(clip, arguments.method, model.class_names(arguments.classes), dtype=dtype, **options(arguments.option))
    images = clip.preprocessing.normalize(model.random_images(clip.config, arguments.batch))
    labels = np.arange(arguments.batch) % arguments.classes
    draw, start = np.random.default_rng(1), task.init(0)
    noise = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32), start)

    def moved(size: float) -> Any:
        return jax.tree.map(lambda leaf, other: jnp.asarray(leaf + size * other), start, noise)

    logits = jax.jit(lambda params, learnables: task.logits(params, learnables, images))
    gradient = jax.jit(jax.grad(lambda learnables, params: task.loss(params, learnables, images, labels)))
    at = {size: np.asarray(logits(clip.params, moved(size))) for size in (0.0, *SIZES)}
    found = {f"{size:g}": at[size] - at[0.0] for size in SIZES}
    leaves = jax.tree.leaves(gradient(moved(SIZES[0]), clip.params))
    return found | {"gradient": np.concatenate([np.ravel(leaf) for leaf in leaves])}


def step(clip: Clip, arguments: argparse.Namespace, dtype: str) -> dict[str, int]:
    """Bytes of a compiled step's arguments and of what it needs besides, and its multiplications and additions."""
    task = Task(clip, arguments.method, model.class_names(CLASSES), dtype=dtype, **options(arguments.option))
    recipe = Recipe(0.0025, 10, 1, 1e-5, ROWS, 0.9, 5e-4)
    step = training_program(task, recipe, rows=ROWS, runs=1, mesh=meshes.single_device())
    account: Any = step.lower().compile().memory_analysis()
    return {
        "argument_bytes": account.argument_size_in_bytes,
        "temp_bytes": account.temp_size_in_bytes,
        "flop": flops.traced(step.function, *step.arguments, **step.options),
    }


def precision(arguments: argparse.Namespace) -> dict[str, Any]:
    """Cosines of changes and gradients with float32's, way by way, and what a step of each type needs."""
    clip = model.random_clip(model.geometry(arguments.geometry, layers=arguments.layers))
    cosines, expected = {}, None
    for name, (dtype, changed) in WAYS.items():
        with changed():
            found = changes(clip, arguments, dtype)
        expected = expected or found
        cosines[name] = {key: cosine(value, expected[key]) for key, value in found.items()}
    return {
        "method": arguments.method,
        "batch": arguments.batch,
        "classes": arguments.classes,
        "cosines": cosines,
        "step": {"batch": ROWS, "classes": CLASSES}
        | {dtype: step(clip, arguments, dtype) for dtype in ("float32", "bfloat16")},
        "device": jax.devices()[0].device_kind,
    }
