"""ProLIP against its rules in NumPy, and through both towers."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.training.features import FeatureStatic, frozen_features
from clipbias.tuning import Learnables, Samples, Task, make_method
from clipbias.tuning.method import sampling_of
from clipbias.tuning.prompts import IMAGENET_SELECT
from clipbias.tuning.task import TrainingTexts
from tests.reference import heads_prolip, optimizers
from tests.tuning import weights_common as common
from tests.tuning.heads_common import check_steps

LABELS = np.array([0, 1, 2, 2, 1, 0, 1, 2, 2], np.int32)
SHOTS = 4
PASSES = 3
CLASSES = ("cat", "dog", "bird")


def make_samples(clip: Clip) -> Samples:
    """Rows before the projection of three passes, and texts by two templates."""
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(PASSES, len(LABELS), clip.config.vision.width)) + 0.5
    text = rng.normal(size=(2, 3, clip.config.projection_width))
    return Samples(hidden.astype(np.float32), LABELS, text.astype(np.float32), scale=7.0)


def begun(clip: Clip, samples: Samples, **options: float) -> tuple[Task, Learnables]:
    """The learnables that `support` makes, but for a change that is not zero."""
    task = Task(clip, "prolip", CLASSES, templates=("a {}", "the {}"), **options)
    learnables = task.method.support(task.init(), samples)
    change = np.random.default_rng(2).normal(scale=0.05, size=learnables["vision_projection"].shape)
    return task, {**learnables, "vision_projection": jnp.asarray(change, jnp.float32)}


def projection(clip: Clip, learnables: Learnables) -> np.ndarray:
    """The tuned projection in float64."""
    return np.asarray(clip.params["vision"]["projection"], np.float64) + np.asarray(learnables["vision_projection"])


def rule(clip: Clip, samples: Samples, strength: float) -> Callable[..., dict[str, float]]:
    """The terms of the loss of learnables on rows of features."""

    def terms(values: Learnables, *, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return heads_prolip.losses(
            hidden=features,
            labels=labels,
            projection=projection(clip, values),
            original=np.asarray(clip.params["vision"]["projection"]),
            text_features=samples.text,
            strength=strength,
        )

    return terms


@pytest.mark.parametrize(("options", "strength"), [({}, 1 / SHOTS), ({"strength": 0.7}, 0.7)])
def test_loss_equals_numpy(clip: Clip, options: dict, strength: float) -> None:
    samples = make_samples(clip)
    task, learnables = begun(clip, samples, **options)
    assert jax.tree.structure(task.init()) == jax.tree.structure(learnables)
    text = jnp.asarray(samples.text.reshape(-1, samples.text.shape[-1]))
    hidden = samples.features[1]
    compute = jax.jit(task.classifier.losses)
    terms, logits = compute(clip.params, learnables, jnp.asarray(hidden), jnp.asarray(LABELS), TrainingTexts(text))
    expected = rule(clip, samples, strength)(learnables, features=hidden, labels=LABELS)
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        common.close(terms[name].mean(), np.asarray(term), common.LOGITS, name)
    same = {"hidden": hidden, "projection": projection(clip, learnables), "text_features": samples.text}
    common.close(logits, heads_prolip.logits(**same), common.LOGITS)


def test_full_batch_steps_equal_numpy(clip: Clip) -> None:
    samples = make_samples(clip)
    task, learnables = begun(clip, samples)
    learnables = {**learnables, "vision_projection": jnp.zeros_like(learnables["vision_projection"])}
    recipe = task.method.recipe_for(common.SGD, SHOTS)
    steps = 5
    recipe = dataclasses.replace(recipe, learning_rate=1e-2, epochs=steps)
    rates = recipe.step_rates(len(LABELS))
    np.testing.assert_allclose(rates, optimizers.cosine_rates(1e-2, steps))
    batches = [(samples.features[step % PASSES], LABELS) for step in range(steps)]
    training = common.Training(recipe, optimizers.Adam(epsilon=1e-4))
    terms = rule(clip, samples, 1 / SHOTS)
    learned = check_steps(clip, task.method, learnables, samples, batches, rates, terms, training)
    assert np.abs(learned["vision_projection"]).max() > 1e-2


@pytest.mark.ci
def test_images_are_projected_by_the_tuned_projection(clip: Clip) -> None:
    """What is trained on rows is what the tower computes of images afterwards."""
    task, learnables = begun(clip, make_samples(clip))
    raw, _ = common.pictures(clip.config.vision.image_size)
    static = FeatureStatic(clip.config, clip.preprocessing, "float32", projected=False)
    rows = frozen_features(static, clip.params, raw)
    logits = jax.jit(task.logits)(clip.params, learnables, clip.preprocessing.normalize(raw))
    projection = np.asarray(clip.params["vision"]["projection"] + learnables["vision_projection"])
    text = np.asarray(task.classifier.split_by_template(task.text_input(clip.params, task.init())))
    expected = heads_prolip.logits(hidden=rows, projection=projection, text_features=text)
    common.close(logits, expected, common.LOGITS)


def test_the_authors_recipe_templates_and_passes() -> None:
    method = make_method("prolip")
    recipe = method.recipe_for(common.SGD, 4)
    assert recipe.total_steps(1000 * 16) == 300 and recipe.steps_per_epoch(1000 * 16) == 1
    sampling = sampling_of(method)
    assert (sampling.passes, sampling.crop, sampling.training, sampling.projected) == (300, 0.5, "again", False)
    assert method.options_for("imagenet", 4) == {"templates": "imagenet_select"}
    assert make_method("prolip", templates="imagenet_select").text("{}", None).templates == IMAGENET_SELECT
