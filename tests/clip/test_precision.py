"""Compute types: which there are, what a device takes by itself, and how exact each one's products are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.train
from clipbias.clip import encode_image
from clipbias.clip.precision import DEFAULT_DTYPES, Target, cast_weights, resolve
from clipbias.errors import ClipbiasError
from clipbias.training import placement
from clipbias.training.ahead import traced_for
from clipbias.training.memory import StepShape, training_program
from clipbias.tuning import Task, make_method
from clipbias.tuning.recipe import Recipe
from tests.end_to_end import conftest as binaries

NAMES = ["cat", "maine coon"]


@pytest.mark.parametrize(
    ("platform", "device"), [("cpu", "CPU"), ("gpu", "GPU"), ("cuda", "GPU"), ("rocm", "GPU"), ("tpu", "TPU")]
)
def test_auto_is_by_device(platform, device):
    assert resolve("auto", platform) == DEFAULT_DTYPES[device]
    assert [resolve(name, platform) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_a_type_that_the_device_lacks_is_refused(model, tmp_path):
    assert resolve("tensorfloat32", "cuda") == "tensorfloat32" and resolve("bfloat16_3x", "tpu") == "bfloat16_3x"
    message = binaries.refusal_here(experiments.train, {"model": str(model), "dtype": "tensorfloat32"}, tmp_path / "w")
    assert "needs a GPU, and this device is a CPU" in message and not (tmp_path / "w").exists()


def test_a_task_refuses_a_type_that_the_device_lacks(clip):
    for platform, dtype in (("cpu", "tensorfloat32"), ("gpu", "bfloat16_3x"), ("tpu", "tensorfloat32")):
        with traced_for(Target(platform)), pytest.raises(ClipbiasError, match="needs a"):
            Task(clip, "bias", NAMES, dtype=dtype)


def test_a_task_knows_what_auto_became(clip):
    assert Task(clip, "bias", NAMES, dtype="auto").classifier.dtype == "float32"


@pytest.mark.ci
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_product_of_a_step_is_left_to_the_device(clip, dtype):
    """Float32 factors are multiplied as the type's name says, or more exactly; half precision has no choice."""
    task = Task(clip, make_method("ivlp"), NAMES, dtype=dtype)
    recipe = Recipe(0.1, 1, 0, 0.1, 4, 0.9, 0.0)
    text = training_program(task, recipe, StepShape(4, 1, placement.single_device())).lower().as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    halves = [line for line in products if re.search(r": \(tensor<[^>]*bf16>, tensor<[^>]*bf16>\)", line)]
    precisions = {
        name for line in products if line not in halves for name in re.findall(r"precision = \[(.*?)\]", line)
    }
    assert precisions == ({"HIGHEST, HIGHEST"} if dtype == "float32" else {"HIGH, HIGH", "HIGHEST, HIGHEST"})
    assert all("precision = [" in line for line in products if line not in halves)
    assert bool(halves) == (dtype == "bfloat16")


@pytest.mark.ci
def test_weights_placed_in_half_precision_are_those_that_a_step_would_round(clip):
    mesh = placement.single_device()
    placed = placement.place_weights(mesh, clip.params, "bfloat16")
    shapes = placement.place_weights(mesh, clip.params, "bfloat16", shapes=True)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), placed) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), shapes
    )
    layers = placed["vision"]["layers"]
    assert layers["qkv"]["kernel"].dtype == jnp.bfloat16 and layers["norm1"]["scale"].dtype == jnp.float32
    assert placed["vision"]["projection"].dtype == jnp.float32
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    encode = jax.jit(lambda params: encode_image(params, clip.config, images, dtype="bfloat16")[0])
    jax.tree.map(lambda leaf, of: np.testing.assert_array_equal(leaf, of.astype(leaf.dtype)), placed, clip.params)
    # Two programs, which may round at other places: by a unit in the last place of bfloat16 or two.
    features = np.asarray(encode(clip.params), np.float32)
    tolerance = 2 * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(features).max()
    np.testing.assert_allclose(np.asarray(encode(placed), np.float32), features, rtol=0, atol=tolerance)
    # Weights that were loaded in half precision are computed with in float32 all the same.
    exact = jax.jit(lambda params: encode_image(params, clip.config, images)[0])
    assert not np.array_equal(exact(placed), encode(placed))
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, placed, cast_weights(placed, "bfloat16")))
