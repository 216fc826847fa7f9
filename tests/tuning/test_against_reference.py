"""Every method's logits, loss, gradients and training against its authors' rules, in PyTorch and in plain NumPy.

PyTorch's numbers are in `tests/data_files`, made by `tools/make_reference_outputs.py`, which finds the NumPy reference
equal to them to 1e-14; NumPy's are computed here, on another geometry and other classes.
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
from clipbias.tuning.recipe import Recipe
from tests import helpers
from tests.reference import gradients, methods, weights
from tests.reference.cases import CASES, CLASS_NAMES, LABELS, LEARNING_RATE, STEPS, Case

DATA = Path(__file__).parents[1] / "data_files"
# Rounding of float32 arithmetic, relative to the largest number of an array.
LOGITS, GRADIENTS, TRAINED = 3e-6, 2e-5, 1e-5
# Of the cases one of each method, and one of each place of a class name.
MAIN = ("zero_shot", "coop", "coop_middle", "coop_class_specific_front", "vpt_deep", "ivlp_two_and_one_layers")
MAIN += ("maple_two_layers", "taskres", "bias", "bias_by_kind")
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
    """One step, compiled: the gradients, loss and logits that it begins with, and learnables and state after it."""
    optimizer = RECIPE.transformation()

    def objective(learnables, params, images, labels):
        logits = task.logits(params, learnables, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

    @jax.jit
    def train(learnables, state, params, images, labels):
        (loss, logits), found = jax.value_and_grad(objective, has_aux=True)(learnables, params, images, labels)
        directions, state = optimizer.update(found, state, learnables)
        after = jax.tree.map(lambda p, v: p - LEARNING_RATE * v, learnables, directions)
        return found, loss, logits, after, state

    return train


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
    return weights.read_config(DATA / "tiny_quick_gelu")


@pytest.mark.parametrize("name", helpers.short(CASES, *MAIN))
def test_equals_the_authors_rules_in_pytorch(name, clip, expected, config):
    case = CASES[name]
    task = clipbias.Task(clip, case.method, CLASS_NAMES, **task_options(case))
    learnables = initial(config, case, len(CLASS_NAMES))
    created = jax.eval_shape(task.init)
    assert {key: value.shape for key, value in created.items()} == {k: v.shape for k, v in learnables.items()}
    train, labels = compute(task), jnp.asarray(LABELS)
    state = RECIPE.transformation().init(learnables)
    for step in range(STEPS):
        found, loss, logits, learnables, state = train(learnables, state, clip.params, expected["images"], labels)
        if step == 0:
            assert_close(logits, expected[f"{name}.logits"], LOGITS, "logits")
            assert_close(loss, expected[f"{name}.loss"], LOGITS, "loss")
            for key, value in found.items():
                if value.size:
                    assert_close(value, expected[f"{name}.gradient.{key}"], GRADIENTS, f"gradient of {key}")
    for key, value in learnables.items():
        if value.size:
            assert_close(value, expected[f"{name}.after.{key}"], TRAINED, f"{key} after {STEPS} steps")


def test_logits_with_the_other_activation():
    """Of the method that changes both towers; what a method adds does not know the activation."""
    folder, name = DATA / "tiny_gelu", "ivlp_two_and_one_layers"
    case = CASES[name]
    clip, config = clipbias.load(folder), weights.read_config(folder)
    task = clipbias.Task(clip, case.method, CLASS_NAMES, **task_options(case))
    images = safetensors.numpy.load_file(folder / "expected.safetensors")["images"]
    logits = jax.jit(task.logits)(clip.params, initial(config, case, len(CLASS_NAMES)), images)
    assert_close(
        logits, safetensors.numpy.load_file(folder / "expected_tuning.safetensors")[f"{name}.logits"], LOGITS, name
    )


# Text wider, deeper and with more heads than vision; two classes whose names are alike but for the last token.
OTHER_NAMES = ("yellow dog-fish", "yellow dog-fin", "o", "a_very_long_name: of a bird", "cat", "Photo of a photo", "7")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> tuple[clipbias.clip.Clip, methods.Reference]:
    folder = tmp_path_factory.mktemp("other")
    reference = helpers.tiny_checkpoint(
        folder, seed=5, vision=(16, 2, 2), text=(32, 4, 4), projection=20, context_length=40
    )
    return clipbias.load(folder), reference


OTHER_CASES = {
    "coop": (Case("coop", {"text": 5, "class_specific": True}, {"worded": False, "position": "middle"}), {}),
    "ivlp": (Case("ivlp", {"text": 3, "vision": 2, "text_depth": 3, "vision_depth": 2}), {"groups": 2}),
    "maple": (Case("maple", {"text": 2, "text_depth": 2}), {"groups": 3}),
    "taskres": (Case("taskres", {}, {"template": "a {} texture.", "alpha": 2.0}), {}),
    "bias": (Case("bias"), {"groups": 2}),
    "bias_by_kind": (Case("bias_by_kind"), {"groups": 2}),
}


@pytest.mark.parametrize("name", OTHER_CASES)
def test_training_step_equals_numpy(name, other):
    clip, reference = other
    case, extra = OTHER_CASES[name]
    task = clipbias.Task(clip, case.method, OTHER_NAMES, **task_options(case), **extra)
    start = initial(reference.config, case, len(OTHER_NAMES), seed=3)
    size = reference.config["vision_config"]["image_size"]
    raw = np.random.Philox(key=9).random_raw(3 * size * size * 3).reshape(3, size, size, 3)
    raw = (raw % np.uint64(256)).astype(np.uint8)
    labels, rates = np.array([6, 1, 1]), (0.03, 0.2, 0.1)
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    images = (raw / 255 - mean) / deviation

    def gradient(learnables: methods.Learnables) -> gradients.Gradients:
        return gradients.loss_and_gradients(
            reference, case.method, OTHER_NAMES, learnables, images, labels, **case.options
        )[1]

    expected = gradients.sgd(gradient, start, rates)
    batch = {"images": raw[None], "labels": labels[None], "mask": np.ones((1, 3), bool)}
    state = training.init_state(task.method, RECIPE, jax.tree.map(lambda x: x[None], start))
    given = training.StepInputs(task.text, None, {}, jnp.zeros(1, jnp.int32))
    for rate in rates:
        state, metrics = training.train_step(
            task.classifier, clip.preprocessing, RECIPE, clip.params, given, state, batch, jnp.array([rate])
        )
    for key, value in state.learnables.items():
        assert_close(value[0], expected[key], TRAINED, f"{key} after {len(rates)} steps")
    before = gradients.sgd(gradient, start, rates[:-1])
    loss, _ = gradients.loss_and_gradients(reference, case.method, OTHER_NAMES, before, images, labels, **case.options)
    assert float(metrics["loss"][0]) == pytest.approx(loss, rel=TRAINED)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_bias_in_one_tower(tower, other):
    clip, reference = other
    task = clipbias.Task(
        clip, "bias", OTHER_NAMES, **{"vision_tower": tower == "vision", "text_tower": tower == "text"}
    )
    both = initial(reference.config, Case("bias"), len(OTHER_NAMES))
    learnables = {key: value for key, value in both.items() if key.startswith(tower)}
    assert task.init().keys() == learnables.keys()
    images = helpers.random_images(reference.config, 2)
    expected = methods.task_logits(reference, "bias", OTHER_NAMES, learnables, images)
    assert_close(jax.jit(task.logits)(clip.params, learnables, images), expected, LOGITS, "logits")


def test_ensemble_of_templates(other):
    clip, reference = other
    templates = ("itap of a {}.", "a bad photo of the {}.", "{} in a video game.")
    task = clipbias.Task(clip, "zero_shot", OTHER_NAMES, templates=templates)
    images = helpers.random_images(reference.config, 3)
    expected = methods.ensemble_logits(reference, OTHER_NAMES, images, templates)
    assert_close(jax.jit(task.logits)(clip.params, {}, images), expected, LOGITS, "logits")


def test_bias_folds_into_the_weights(other):
    """Plain CLIP whose MLP output biases are increased by the learned ones gives the tuned logits."""
    clip, reference = other
    learnables = initial(reference.config, Case("bias"), len(OTHER_NAMES))
    state = {name: value.copy() for name, value in reference.state.items()}
    for tower in ("vision", "text"):
        for l, bias in enumerate(np.asarray(learnables[f"{tower}_bias"], np.float64)):
            state[f"{tower}_model.encoder.layers.{l}.mlp.fc2.bias"] += bias
    folded = methods.Reference(state, reference.config, reference.tokenizer)
    images = helpers.random_images(reference.config, 2)
    expected = methods.task_logits(folded, "zero_shot", OTHER_NAMES, {}, images)
    task = clipbias.Task(clip, "bias", OTHER_NAMES)
    assert_close(jax.jit(task.logits)(clip.params, learnables, images), expected, LOGITS, "logits")


@pytest.mark.parametrize("position", ["middle", "front"])
def test_a_context_shorter_than_its_words_moves_the_name_alone(position, other):
    clip, reference = other
    case = Case("coop", {"text": 2}, {"position": position})
    task = clipbias.Task(clip, "coop", OTHER_NAMES, **task_options(case))
    learnables = initial(reference.config, case, len(OTHER_NAMES))
    images = helpers.random_images(reference.config, 2)
    expected = methods.task_logits(reference, "coop", OTHER_NAMES, learnables, images, position=position, worded=False)
    assert_close(jax.jit(task.logits)(clip.params, learnables, images), expected, LOGITS, "logits")
