"""Half precision trains what float32 trains: what is learned shows in logits and gradients, for half a step more."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import layers
from clipbias.clip.precision import cast_weights
from clipbias.training import mesh as meshes
from clipbias.training.memory import StepShape, training_program
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from tools import benchmark as model

SIZES = (1e-3, 3e-3)  # of the noise by which learnables are moved, as training moves them


@contextlib.contextmanager
def cudnn() -> Iterator[None]:
    """Attention of images as on an NVIDIA GPU: in half precision but for the row that is read out."""
    attend = functools.partial(layers.read_out_exactly, implementation="xla")
    with (
        mock.patch.object(layers, "cudnn_takes", return_value=True),
        mock.patch.object(layers, "read_out_exactly", attend),
    ):
        yield


def one_part() -> Any:
    """Tokens rounded to half precision before each product, instead of taken in two parts."""
    return mock.patch.object(layers, "in_two_parts", layers._in_one)


def changes(method: str, dtype: str) -> list[np.ndarray]:
    """How the logits change with the learnables' size, and the gradient at the smallest, as one vector."""
    clip = model.random_clip(model.geometry("tiny"))
    draw = np.random.default_rng(1)
    task = Task(clip, method, model.class_names(6), dtype=dtype)
    images = clip.preprocessing.normalize(model.random_images(clip.config, 4))
    labels = np.arange(4)
    start = task.init(0)
    noise = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32), start)

    def moved(size: float) -> Any:
        return jax.tree.map(lambda leaf, other: jnp.asarray(leaf + size * other), start, noise)

    logits = jax.jit(lambda params, learnables: task.logits(params, learnables, images))
    gradient = jax.jit(jax.grad(lambda learnables, params: task.loss(params, learnables, images, labels)))
    zero, *at = (np.asarray(logits(clip.params, moved(size))) for size in (0.0, *SIZES))
    leaves = jax.tree.leaves(gradient(moved(SIZES[0]), clip.params))
    return [*(value - zero for value in at), np.concatenate([np.ravel(leaf) for leaf in leaves])]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays as vectors, in float64."""
    a, b = (np.ravel(x).astype(np.float64) for x in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.long
@pytest.mark.parametrize("method", ["bias", "ivlp"])
def test_what_is_learned_shows_as_in_float32(method):
    """Without the second part of the tokens a change of a thousandth would hardly be seen (cosine below 0.9)."""
    exact = changes(method, "float32")

    def cosines(changed: Any) -> list[float]:
        with changed:
            return [cosine(*pair) for pair in zip(changes(method, "bfloat16"), exact, strict=True)]

    assert min(cosines(contextlib.nullcontext())) > 0.995
    if method == "bias":
        assert min(cosines(cudnn())) > 0.995
        assert cosines(one_part())[0] < 0.9


def test_a_product_in_two_parts_and_its_gradients():
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 64), (5, 48)))
    kernel = jnp.asarray(rng.normal(size=(64, 48)), jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(jax.jit(layers.multiply)(x, kernel), exact, atol=3e-4)  # 16 bits of numbers up to 3
    assert np.abs(layers._in_one(x, kernel) - exact).max() > 3e-3
    of_x, of_kernel = jax.grad(lambda *args: (layers.multiply(*args) * weight).sum(), argnums=(0, 1))(x, kernel)
    np.testing.assert_allclose(of_x, weight @ kernel.astype(jnp.float32).T, atol=0.2)  # of numbers up to 20
    np.testing.assert_allclose(of_kernel.astype(jnp.float32), x.T @ weight, atol=0.1)
    change = jax.jvp(lambda y: layers.multiply(y, kernel), (x,), (x,))[1]
    np.testing.assert_allclose(change, exact, atol=0.2)


@pytest.mark.ci
def test_a_step_takes_two_products_forward_and_one_back():
    clip = model.random_clip(model.geometry("tiny", layers=8))
    recipe = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)
    counts = {}
    for dtype in ("float32", "bfloat16"):
        task = Task(clip, "ivlp", ["red", "blue"], dtype=dtype)
        step = training_program(task, recipe, StepShape(4, 1, meshes.single_device()))
        counts[dtype] = model.traced(step.function, *step.arguments)
    assert 1.3 < counts["bfloat16"] / counts["float32"] < 1.52


@pytest.mark.ci
def test_what_the_backward_pass_keeps_of_hidden_units_is_in_half_precision():
    clip = model.random_clip(model.geometry("tiny", layers=4))
    task = Task(clip, "ivlp", ["red", "blue"], dtype="bfloat16")
    images = jnp.zeros((2, 32, 32, 3))
    params = cast_weights(clip.params, "bfloat16")
    gradient = jax.grad(lambda learned: task.loss(params, learned, images, jnp.zeros(2, int)))
    jaxpr = jax.make_jaxpr(gradient)(task.init(0))
    stacked = [str(v.aval) for eqn in jaxpr.eqns if eqn.primitive.name == "scan" for v in eqn.outvars]
    hidden = [kind for kind in stacked if kind.endswith(",256]") and "[3," in kind]  # of the vision tower
    assert hidden and all(kind.startswith("bfloat16") for kind in hidden), stacked
