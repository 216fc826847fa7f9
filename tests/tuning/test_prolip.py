"""ProLIP against its rules in NumPy, and through both towers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Clip
from clipbias.training.features import frozen_features
from clipbias.tuning import Learnables, Samples, Task, make_method
from clipbias.tuning.classifier import TrainingTexts
from clipbias.tuning.feature_method import sampling_of
from clipbias.tuning.templates import IMAGENET_SELECT
from tests.reference import heads_prolip
from tests.reference.optimizers import cosine_rates
from tests.tuning import weights_common as common
from tests.tuning.heads_common import stepped

LABELS, SHOTS, PASSES = np.array([0, 1, 2, 2, 1, 0, 1, 2, 2], np.int32), 4, 3
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


@pytest.mark.parametrize(("options", "strength"), [({}, 1 / SHOTS), ({"strength": 0.7}, 0.7)])
def test_loss_and_gradient_equal_numpy(clip: Clip, options: dict, strength: float) -> None:
    samples = make_samples(clip)
    task, learnables = begun(clip, samples, **options)
    assert jax.tree.structure(task.init()) == jax.tree.structure(learnables)
    text = jnp.asarray(samples.text.reshape(-1, samples.text.shape[-1]))
    hidden = samples.features[1]

    @jax.jit
    def compute(params, change):
        def loss(change):
            both = {**learnables, "vision_projection": change}
            terms, logits = task.classifier.losses(
                params, both, jnp.asarray(hidden), jnp.asarray(LABELS), TrainingTexts(text)
            )
            means = {name: term.mean() for name, term in terms.items()}
            return sum(means.values()), (means, logits)

        (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(change)
        return *found, gradient

    terms, logits, gradient = compute(clip.params, learnables["vision_projection"])
    original = np.asarray(clip.params["vision"]["projection"], np.float64)
    projection = original + np.asarray(learnables["vision_projection"], np.float64)
    same = {"hidden": hidden, "projection": projection, "text_features": samples.text}
    common.close(logits, heads_prolip.logits(**same), common.LOGITS)
    expected, slope = heads_prolip.loss_and_gradient(**same, labels=LABELS, original=original, strength=strength)
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        common.close(terms[name], np.asarray(term), common.LOGITS, name)
    common.close(gradient, slope, common.GRADIENTS)


def test_full_batch_steps_equal_numpy(clip: Clip) -> None:
    samples = make_samples(clip)
    task, learnables = begun(clip, samples)
    learnables = {**learnables, "vision_projection": jnp.zeros_like(learnables["vision_projection"])}
    recipe, steps = task.method.recipe_for(common.SGD, SHOTS), 5
    recipe = dataclasses.replace(recipe, learning_rate=1e-2, epochs=steps)
    rates = recipe.step_rates(len(LABELS))
    np.testing.assert_allclose(rates, cosine_rates(1e-2, steps))
    batches = [(samples.features[step % PASSES], LABELS) for step in range(steps)]
    found = stepped(clip, task.method, learnables, samples, batches, recipe, rates)
    original = np.asarray(clip.params["vision"]["projection"], np.float64)
    expected, _ = heads_prolip.train(
        hidden=np.roll(samples.features, 1, 0),  # the reference begins with the second pass
        labels=LABELS,
        original=original,
        text_features=samples.text,
        shots=SHOTS,
        steps=steps,
        learning_rate=1e-2,
    )
    common.close(found["vision_projection"], expected[-1] - original, common.TRAINED)


def test_images_are_projected_by_the_tuned_projection(clip: Clip) -> None:
    """What is trained on rows is what the tower computes of images afterwards."""
    task, learnables = begun(clip, make_samples(clip))
    raw, _ = common.pictures(clip.config.vision.image_size)
    rows = frozen_features(clip.config, clip.preprocessing, clip.params, raw, dtype="float32", projected=False)
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
