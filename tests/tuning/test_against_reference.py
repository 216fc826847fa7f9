"""The methods of `tests/reference/cases.py` against their authors' rules, in PyTorch and in plain NumPy.

PyTorch's numbers are in `tests/data_files`, made by `tools/make_reference_outputs.py`. NumPy equals them in every case.
The package equals NumPy in one case of each method, on another geometry and other classes, and PyTorch in all for long
tests.
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
from tests.reference import heads, methods, numpy_clip, optimizers, teachers, weights
from tests.reference.cases import CASES, CLASS_NAMES, LABELS, LEARNING_RATE, STEPS, Case
from tests.reference.differences import along_directions
from tests.reference.tokenizer import SimpleTokenizer
from tests.tuning import weights_common as common

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
        return methods.losses(
            reference, case.method, CLASS_NAMES, learnables, expected["images"], np.array(LABELS), **case.options
        )

    terms, logits = compute(start)
    assert_close(logits, expected[f"{name}.logits"], 1e-6, "logits")
    assert terms["cross_entropy"] == pytest.approx(float(expected[f"{name}.loss"]), rel=1e-6)
    slopes = {key: expected.get(f"{name}.gradient.{key}", value) for key, value in start.items()}  # none of no rows
    errors = along_directions(lambda x: compute(x)[0]["cross_entropy"], weights.double(start), slopes)
    assert max(errors.values(), default=0) < 1e-6


# Text wider, deeper and with more heads than vision; two classes whose names are alike but for the last token.
OTHER_NAMES = ("yellow dog-fish", "yellow dog-fin", "o", "a_very_long_name: of a bird", "cat", "Photo of a photo", "7")


@pytest.fixture(scope="module")
def other(tiny) -> tuple[Clip, methods.Reference]:
    return tiny(seed=5, vision=(16, 2, 2), text=(32, 4, 4), projection=20, context_length=40)


@pytest.fixture(scope="module")
def smallest(tiny) -> tuple[Clip, methods.Reference]:
    return tiny(seed=5, vision=(8, 2, 2), text=(12, 3, 3), projection=6, image_size=8, context_length=40)


IN_FULL = ("bias", "taskres")  # small enough for differences in every coordinate
# A case, and the devices that share its classes.
OTHER_CASES = {
    "coop": (Case("coop", {"text": 5, "class_specific": True}, {"worded": False, "position": "middle"}), 3),
    "vpt": (Case("vpt", {"vision": 3}), 1),
    "ivlp": (Case("ivlp", {"text": 3, "vision": 2, "text_depth": 3, "vision_depth": 2}), 2),
    "maple": (Case("maple", {"text": 2, "text_depth": 2}), 3),
    "taskres": (Case("taskres", {}, {"template": "a {} texture.", "alpha": 2.0}), 1),
    "bias": (Case("bias"), 2),
    "bias_by_kind": (Case("bias_by_kind"), 2),
}


@pytest.mark.parametrize("name", OTHER_CASES)
def test_training_equals_numpy(name, other, smallest):
    case, shards = OTHER_CASES[name]
    clip, reference = smallest if name in IN_FULL else other
    task = clipbias.Task(clip, case.method, OTHER_NAMES, **task_options(case)).with_memory(class_shards=shards)

    def rule(values, step):
        return methods.losses(reference, case.method, OTHER_NAMES, values, step.images, common.LABELS, **case.options)

    training = common.Training(combine=common.added if name in IN_FULL else None)
    start = initial(reference.config, case, len(OTHER_NAMES), seed=3)
    common.check_training(task, start, rule, training, rates=(0.03, 0.2, 0.1))


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


def test_ensemble_of_templates(other):
    clip, reference = other
    templates = ("itap of a {}.", "a bad photo of the {}.", "{} in a video game.")
    task = clipbias.Task(clip, "zero_shot", OTHER_NAMES, templates=templates)
    images = helpers.random_images(reference.config, 3)
    image = numpy_clip.encode_image(reference.state, reference.config, images).features
    texts = [teachers.plain_text(reference, OTHER_NAMES, template) for template in templates]
    expected = heads.zero_shot_logits(image, np.stack(texts), float(np.exp(reference.state["logit_scale"])))
    assert_close(jax.jit(task.logits)(clip.params, {}, images), expected, LOGITS, "logits")


@pytest.mark.parametrize("position", helpers.short(["middle", "front"], "front"))
def test_a_context_shorter_than_its_words_moves_the_name_alone(position, other):
    clip, reference = other
    case = Case("coop", {"text": 2}, {"position": position})
    task = clipbias.Task(clip, "coop", OTHER_NAMES, **task_options(case))
    learnables = initial(reference.config, case, len(OTHER_NAMES))
    images = helpers.random_images(reference.config, 2)
    expected = methods.task_logits(reference, "coop", OTHER_NAMES, learnables, images, position=position, worded=False)
    assert_close(jax.jit(task.logits)(clip.params, learnables, images), expected, LOGITS, "logits")
