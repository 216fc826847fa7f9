"""Half precision trains what float32 trains: what is learned shows in logits and gradients, for half a step more."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import products
from clipbias.clip.precision import held
from clipbias.training import mesh as meshes
from clipbias.training.programs import training_program
from clipbias.tuning import Task
from clipbias.tuning.recipe import Recipe
from tools.benchmarks import flops, model, precision


@pytest.mark.parametrize("method", ["bias", "ivlp"])
def test_what_is_learned_shows_as_in_float32(method: str) -> None:
    """Without the second part of the tokens a change of a thousandth would hardly be seen (cosine below 0.9)."""
    clip = model.random_clip(model.geometry("tiny"))
    arguments = argparse.Namespace(method=method, option=[], batch=4, classes=6)
    others = ["bfloat16, attention as by cuDNN", "bfloat16, tokens in one part"] if method == "bias" else []
    found = {}
    for way in ("float32", "bfloat16", *others):
        dtype, changed = precision.WAYS[way]
        with changed():
            found[way] = precision.changes(clip, arguments, dtype)
    exact = found.pop("float32")
    cosines = {way: {key: precision.cosine(x, exact[key]) for key, x in own.items()} for way, own in found.items()}
    if method == "bias":
        assert cosines.pop("bfloat16, tokens in one part")["0.001"] < 0.9
    assert all(value > 0.995 for own in cosines.values() for value in own.values()), cosines


def test_a_product_in_two_parts_and_its_gradients() -> None:
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 64), (5, 48)))
    kernel = jnp.asarray(rng.normal(size=(64, 48)), jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(jax.jit(products.multiply)(x, kernel), exact, atol=3e-4)  # 16 bits of numbers up to 3
    assert np.abs(products._in_one(x, kernel) - exact).max() > 3e-3
    of_x, of_kernel = jax.grad(lambda *given: (products.multiply(*given) * weight).sum(), argnums=(0, 1))(x, kernel)
    np.testing.assert_allclose(of_x, weight @ kernel.astype(jnp.float32).T, atol=0.2)  # of numbers up to 20
    np.testing.assert_allclose(of_kernel.astype(jnp.float32), x.T @ weight, atol=0.1)
    change = jax.jvp(lambda y: products.multiply(y, kernel), (x,), (x,))[1]
    np.testing.assert_allclose(change, exact, atol=0.2)


def test_a_step_takes_two_products_forward_and_one_back() -> None:
    clip = model.random_clip(model.geometry("tiny", layers=8))
    recipe = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)
    counts = {}
    for dtype in ("float32", "bfloat16"):
        task = Task(clip, "ivlp", ["red", "blue"], dtype=dtype)
        step = training_program(task, recipe, rows=4, runs=1, mesh=meshes.single_device())
        counts[dtype] = flops.traced(step.function, *step.arguments, **step.options)
    assert 1.3 < counts["bfloat16"] / counts["float32"] < 1.52


def test_what_the_backward_pass_keeps_of_hidden_units_is_in_half_precision() -> None:
    clip = model.random_clip(model.geometry("tiny", layers=4))
    task = Task(clip, "ivlp", ["red", "blue"], dtype="bfloat16")
    images = jnp.zeros((2, 32, 32, 3))
    params = held(clip.params, "bfloat16")
    gradient = jax.grad(lambda learned: task.loss(params, learned, images, jnp.zeros(2, int)))
    jaxpr = jax.make_jaxpr(gradient)(task.init(0))
    stacked = [str(v.aval) for eqn in jaxpr.eqns if eqn.primitive.name == "scan" for v in eqn.outvars]
    hidden = [kind for kind in stacked if kind.endswith(",256]") and "[3," in kind]  # of the vision tower
    assert hidden and all(kind.startswith("bfloat16") for kind in hidden), stacked
