"""Prompts per image and several prompt sets against NumPy: logits, terms of the loss, gradients, steps, starts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.training import step as training
from clipbias.tuning import Task
from tests import helpers
from tests.reference import methods, prompts_cocoop
from tests.reference.gradients import sgd
from tests.reference.weights import double
from tests.tuning import weights_common as common
from tests.tuning.weights_common import CLASS_NAMES, LABELS

RATES = (0.03, 0.02, 0.05)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Clip, methods.Reference]:
    folder = tmp_path_factory.mktemp("prompts")
    reference = helpers.tiny_checkpoint(folder, vision=(16, 3, 2), image_size=8, projection=48, context_length=40)
    return clipbias.load(folder), reference


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    return common.pictures(8)


def normalised(clip: Clip, raw: np.ndarray) -> jax.Array:
    return clip.preprocessing.normalize(jnp.asarray(raw))


def check_rule(task: Task, start: Mapping[str, Any], pictures: tuple[np.ndarray, np.ndarray], reference: Any) -> None:
    """Logits, terms, the gradient that a step takes and three steps; `reference` has `logits` and `losses`."""
    (raw, images), params = pictures, task.clip.params
    assert {name: leaf.shape for name, leaf in task.init().items()} == {name: x.shape for name, x in start.items()}
    learnables = {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}
    exact = double(learnables)
    losses, gradients = reference.losses(exact, images)
    batch = (normalised(task.clip, raw), LABELS, np.ones(len(LABELS), bool))
    terms, logits = jax.jit(task.classifier.losses)(params, learnables, *batch[:2], task.text, None)
    common.close(logits, reference.logits(exact, images), common.LOGITS, "logits")
    assert set(terms) == set(losses)
    for name, value in losses.items():
        assert float(terms[name].mean()) == pytest.approx(value, rel=common.LOGITS, abs=common.LOGITS), name
    _, _, taken = jax.jit(training.loss_and_gradients, static_argnums=0)(
        task.classifier, params, task.text, None, learnables, {}, batch, jax.random.key(0)
    )
    common.close_trees(taken, gradients, common.GRADIENTS)
    after, _ = common.trained(task, learnables, common.SGD, raw, LABELS, RATES)
    common.close_trees(after, sgd(lambda x: reference.losses(x, images)[1], exact, RATES), common.TRAINED)


# CoCoOp


class CoCoOp:
    def __init__(self, clip: methods.Reference) -> None:
        self.clip = clip

    def logits(self, learnables, images):
        return prompts_cocoop.logits(self.clip, CLASS_NAMES, learnables, images)

    def losses(self, learnables, images):
        return prompts_cocoop.loss_and_gradients(self.clip, CLASS_NAMES, learnables, images, LABELS)


@pytest.mark.parametrize("batch", [1, 3])
def test_cocoop(pair, pictures, batch, monkeypatch) -> None:
    clip, reference = pair
    task = Task(clip, "cocoop", CLASS_NAMES)
    monkeypatch.setitem(globals(), "LABELS", LABELS[:batch])
    start = common.drawn(task.shapes, 0.4, seed=5)
    check_rule(task, start, tuple(each[:batch] for each in pictures), CoCoOp(reference))


def test_cocoop_starts_as_torchs_linear_layers_and_the_words_do(pair) -> None:
    clip, reference = pair
    task = Task(clip, "cocoop", CLASS_NAMES)
    runs = [jax.device_get(task.init(seed)) for seed in range(60)]
    words = reference.tokenizer.tokenize(["a photo of a"])[0, 1:5]
    expected = methods.numpy_clip.token_embeddings(reference.state, words)
    np.testing.assert_allclose(runs[0]["text_context"], expected, atol=1e-7)
    for layer, inputs in (("hidden", 48), ("output", 3)):
        for part in ("kernel", "bias"):
            drawn = np.concatenate([run[f"text_{layer}_{part}"].ravel() for run in runs]) * inputs**0.5
            assert np.abs(drawn).max() <= 1 and np.abs(drawn).max() > 0.95, (layer, part)
            assert drawn.std() == pytest.approx(3**-0.5, rel=0.12) and abs(drawn.mean()) < 0.15
    # The shift is not zero at first.
    raw = common.pictures(8)[0]
    fresh = jax.jit(task.logits)(clip.params, runs[0], normalised(clip, raw))
    plain = jax.jit(Task(clip, "zero_shot", CLASS_NAMES).logits)(clip.params, {}, normalised(clip, raw))
    assert np.abs(fresh - plain).max() > 0.1
