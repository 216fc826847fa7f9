"""The methods of `tests/reference/cases.py` against their authors' rules, in PyTorch and in plain NumPy.

PyTorch's numbers are in `tests/data_files`, whose README names the program that wrote them. NumPy equals them in every
case. The package equals NumPy in one case of each method, on another geometry and other classes, and PyTorch in all for
long tests.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Clip
from tests import helpers
from tests.reference import heads, methods, optimizers, weights
from tests.reference.cases import CASES, CLASS_NAMES, LABELS, LEARNING_RATE, STEPS, Case
from tests.reference.differences import along_directions
from tests.reference.tokenizer import SimpleTokenizer

DATA = Path(__file__).parents[1] / "data_files"
# Rounding of float32 arithmetic, relative to the largest number of an array.
LOGITS = 3e-6
GRADIENTS = 2e-5
TRAINED = 1e-5


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
    learnables = methods.random_learnables(config, case.method, classes, seed=seed, **case.sizes)
    return {name: jnp.asarray(value) for name, value in learnables.items()}


@pytest.fixture(scope="module")
def of_torch() -> tuple[Clip, methods.Reference]:
    """What PyTorch's numbers are of."""
    folder = DATA / "tiny_quick_gelu"
    config = weights.read_config(folder)
    state = weights.double(safetensors.numpy.load_file(folder / "model.safetensors"))
    tokenizer = SimpleTokenizer(folder, config["text_config"]["max_position_embeddings"])
    return clipbias.load(folder), methods.Reference(state, config, tokenizer)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    folder = DATA / "tiny_quick_gelu"
    return safetensors.numpy.load_file(folder / "expected_tuning.safetensors") | {
        "images": safetensors.numpy.load_file(folder / "expected.safetensors")["images"]
    }


@pytest.mark.parametrize("name", CASES)
def test_numpy_equals_the_authors_rules_in_pytorch(name, of_torch, expected):
    reference = of_torch[1]
    case = CASES[name]
    start = methods.random_learnables(reference.config, case.method, len(CLASS_NAMES), **case.sizes)

    def compute(learnables):
        batch = expected["images"], np.array(LABELS)
        return methods.losses(reference, CLASS_NAMES, learnables, *batch, method=case.method, **case.options)

    terms, logits = compute(start)
    assert_close(logits, expected[f"{name}.logits"], 1e-6, "logits")
    assert terms["cross_entropy"] == pytest.approx(float(expected[f"{name}.loss"]), rel=1e-6)
    slopes = {key: expected.get(f"{name}.gradient.{key}", value) for key, value in start.items()}  # none of no rows
    errors = along_directions(lambda x: compute(x)[0]["cross_entropy"], weights.double(start), slopes)
    assert max(errors.values(), default=0) < 1e-6


@pytest.mark.parametrize("name", helpers.short([name for name in CASES if name != "zero_shot"], "bias"))
def test_steps_equal_the_authors_rules_in_pytorch(name, of_torch, expected):
    clip, reference = of_torch
    case = CASES[name]
    task = clipbias.Task(clip, case.method, CLASS_NAMES, **task_options(case))
    start = initial(reference.config, case, len(CLASS_NAMES))
    compute = jax.jit(jax.value_and_grad(task.loss, argnums=1))
    optimizer = optimizers.SGD()
    values = weights.double(start)
    for step in range(STEPS):
        loss, slopes = compute(clip.params, jax.tree.map(np.float32, values), expected["images"], np.array(LABELS))
        if step == 0:
            assert float(loss) == pytest.approx(float(expected[f"{name}.loss"]), rel=LOGITS)
            for key, value in start.items():
                if value.size:
                    assert_close(slopes[key], expected[f"{name}.gradient.{key}"], GRADIENTS, f"gradient of {key}")
        values = optimizer.step(values, jax.tree.map(np.float64, dict(slopes)), LEARNING_RATE)
    for key, value in start.items():
        if value.size:
            assert_close(values[key], expected[f"{name}.after.{key}"], TRAINED, f"{key} after {STEPS} steps")


def test_ensemble_of_templates(wide_text):
    clip, reference = wide_text
    templates = ("itap of a {}.", "a bad photo of the {}.", "{} in a video game.")
    task = clipbias.Task(clip, "zero_shot", CLASS_NAMES, templates=templates)
    images = helpers.random_images(reference.config, 3)
    image = methods.run_image(reference, images).features
    texts = [methods.plain_text(reference, CLASS_NAMES, template) for template in templates]
    expected = heads.zero_shot_logits(image, np.stack(texts), float(np.exp(reference.state["logit_scale"])))
    assert_close(jax.jit(task.logits)(clip.params, {}, images), expected, LOGITS, "logits")


@pytest.mark.parametrize("position", helpers.short(["middle", "front"], "front"))
def test_a_context_shorter_than_its_words_moves_the_name_alone(position, wide_text):
    clip, reference = wide_text
    case = Case("coop", {"text": 2}, {"position": position})
    task = clipbias.Task(clip, "coop", CLASS_NAMES, **task_options(case))
    learnables = initial(reference.config, case, len(CLASS_NAMES))
    images = helpers.random_images(reference.config, 2)
    expected = methods.task_logits(reference, "coop", CLASS_NAMES, learnables, images, position=position, worded=False)
    assert_close(jax.jit(task.logits)(clip.params, learnables, images), expected, LOGITS, "logits")
