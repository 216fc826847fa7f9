"""Every method's logits, loss, gradients and training against its authors' rules, in PyTorch and in plain NumPy.

PyTorch's numbers are in `tests/data_files` (made by `tools/make_reference_outputs.py`, which finds the NumPy reference equal
to them to 1e-14); NumPy's are computed here, on another geometry and other classes.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Clip
from clipbias.training import step as training
from clipbias.training.settings import Recipe
from tests import helpers
from tests.reference import gradients, methods, numpy_clip
from tests.reference.cases import CASES, CLASS_NAMES, LABELS, LEARNING_RATE, STEPS, Case

DATA = Path(__file__).parents[1] / "data_files"
# Rounding of float32 arithmetic, relative to the largest number of an array.
LOGITS, GRADIENTS, TRAINED = 3e-6, 2e-5, 1e-5
RECIPE = Recipe(
    learning_rate=LEARNING_RATE,
    epochs=1,
    warmup_epochs=0,
    warmup_learning_rate=0.0,
    batch_size=len(LABELS),
    momentum=0.9,
    weight_decay=5e-4,
)


def assert_close(actual: jax.Array, expected: np.ndarray, tolerance: float, what: str) -> None:
    """Compares relative to the largest expected number."""
    assert actual.shape == expected.shape, what
    difference = np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()
    assert difference < tolerance, f"{what} differs by {difference:.1e} of its largest number"


def task_options(case: Case) -> dict[str, object]:
    """The options by which `Task` makes the method of a case."""
    renamed = {
        "coop": {"text": "tokens"},
        "vpt": {"vision": "tokens", "vision_depth": "depth"},
        "ivlp": {"text": "text_tokens", "vision": "vision_tokens"},
        "maple": {"text": "tokens", "text_depth": "depth"},
    }.get(case.method, {})
    options = {renamed.get(key, key): value for key, value in case.sizes.items()}
    for key, value in case.options.items():
        if key == "worded":
            options["words"] = "a photo of a" if value else ""
        else:
            options[key] = value
    return options


def initial(config: Mapping, case: Case, classes: int, seed: int = 0) -> dict[str, jax.Array]:
    """Learnables of a case as the package takes them."""
    found = methods.random_learnables(config, case.method, classes, seed=seed, **case.sizes)
    return {name: jnp.asarray(value) for name, value in found.items()}


def compute(task: clipbias.Task):
    """(params, learnables, images, labels) -> loss, logits and gradients, compiled."""

    def objective(learnables, params, images, labels):
        logits = task.logits(params, learnables, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    differentiate = jax.jit(jax.value_and_grad(objective, has_aux=True))
    return lambda params, learnables, images, labels: differentiate(learnables, params, images, labels)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clipbias.load(DATA / "tiny_quick_gelu")


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    folder = DATA / "tiny_quick_gelu"
    return safetensors.numpy.load_file(folder / "expected_tuning.safetensors") | {
        "images": safetensors.numpy.load_file(folder / "expected.safetensors")["images"]
    }


@pytest.fixture(scope="module")
def config() -> dict:
    return numpy_clip.read_config(DATA / "tiny_quick_gelu")


@pytest.mark.parametrize("name", CASES)
def test_equals_the_authors_rules_in_pytorch(name, clip, expected, config):
    case = CASES[name]
    task = clipbias.Task(clip, case.method, CLASS_NAMES, **task_options(case))
    learnables = initial(config, case, len(CLASS_NAMES))
    created = task.init()
    assert {key: value.shape for key, value in created.items()} == {k: v.shape for k, v in learnables.items()}
    differentiate, labels = compute(task), jnp.asarray(LABELS)
    optimizer = training.optimizer(RECIPE)
    state = optimizer.init(learnables)
    for step in range(STEPS):
        (loss, logits), found = differentiate(clip.params, learnables, expected["images"], labels)
        if step == 0:
            assert_close(logits, expected[f"{name}.logits"], LOGITS, "logits")
            assert_close(loss, expected[f"{name}.loss"], LOGITS, "loss")
            for key, value in found.items():
                if value.size:
                    assert_close(value, expected[f"{name}.gradient.{key}"], GRADIENTS, f"gradient of {key}")
        directions, state = optimizer.update(found, state, learnables)
        learnables = jax.tree.map(lambda p, v: p - LEARNING_RATE * v, learnables, directions)
    for key, value in learnables.items():
        if value.size:
            assert_close(value, expected[f"{name}.after.{key}"], TRAINED, f"{key} after {STEPS} steps")
