"""Towers of which it is known what makes tuning work: outcomes, shares and the verdict must say so."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipbias.clip import Adaptation, Clip, checkpoint
from clipbias.clip.formats import Tensor
from clipbias.explain.conclusions import through
from clipbias.explain.effects import OUTCOMES, measure, summarize_effects
from clipbias.explain.factorial import corners, effects_in_play, mix_images
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.results import ByOutcome
from clipbias.explain.run import run_study
from clipbias.explain.study import Study
from clipbias.explain.uncertainty import shapley
from clipbias.tuning import Task
from tests.explain import constructed
from tests.explain.constructed import CONSTRUCTED, NAMES, Constructed
from tests.reference import factorial, methods, numpy_clip

IMAGES = 48
FEW = 6
# What each effect carries of the gain in log-likelihood, the others nothing; and what the gain comes through, in
# accuracy and in calibrated log-likelihood.
EXPECTED: dict[str, tuple[dict[str, float], tuple[str, str]]] = {
    "attention": ({"attention": 1}, ("attention", "attention")),
    "both": ({"attention": 0.56, "values": 0.44}, ("undecided", "together")),  # each alone has half in accuracy
    "scale": ({"scale": 1}, ("tokens", "tokens")),
    "constant": ({"values": 1}, ("tokens", "tokens")),
    "kinds": ({"values": 1}, ("tokens", "tokens")),
    "image": ({"values": 1}, ("tokens", "tokens")),
    "attention, bias": ({"attention": 1}, ("attention", "attention")),
    "constant, bias": ({"values": 1}, ("tokens", "tokens")),
}


def with_weights(clip: Clip, state: dict[str, np.ndarray]) -> Clip:
    tensors = {
        name: Tensor(value.shape, "float32", lambda value=value: value.astype(np.float32))
        for name, value in state.items()
    }
    return dataclasses.replace(clip, params=checkpoint.from_tensors(clip.config, tensors, where="a test"))


def expected_outcomes(made: Constructed, effects: tuple[str, ...]) -> np.ndarray:
    """[B, K] the log-likelihood of images under every mixture, in float64."""
    inputs = methods.prepare(made.clip, "zero_shot", NAMES, {})
    tuned = dataclasses.replace(inputs, vision_prompts=made.prompts, vision_bias=made.bias)
    runs = [factorial.vision_run(made.clip, made.images, added) for added in (None, tuned)]
    texts = factorial.text_run(made.clip, inputs).forward.features
    logits = [
        numpy_clip.logits(made.clip.state, factorial.features(*runs, stream, effects), texts)
        for stream in factorial.streams(effects)
    ]
    return np.stack([factorial.log_likelihood(rows, made.labels) for rows in logits], axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def mixed_logits(config: Any, streams: Any, params: Any, images: jax.Array, tuned: Adaptation, texts: Any) -> Any:
    """[K, B, C] of the package."""
    mixed = mix_images(params, config, images, tuned, Adaptation(), streams).streams
    mixed, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (mixed, texts))
    return jnp.exp(params["logit_scale"]) * mixed @ texts.T


@pytest.mark.ci
@pytest.mark.parametrize("name", CONSTRUCTED)
def test_what_matters_is_found(name, reference, clip):
    made = CONSTRUCTED[name](reference, IMAGES)
    effects = effects_in_play(made.bias is None)
    streams = corners(effects)
    constructed_clip = with_weights(clip, made.clip.state)
    prompts, bias = (None if x is None else jnp.asarray(x, jnp.float32) for x in (made.prompts, made.bias))
    texts = Task(constructed_clip, "zero_shot", NAMES).text_features(constructed_clip.params, {})
    tuned = Adaptation(vision_prompts=prompts, vision_bias=bias)
    images = jnp.asarray(made.images, jnp.float32)
    logits = mixed_logits(constructed_clip.config, streams, constructed_clip.params, images, tuned, texts)
    logits = np.asarray(logits, np.float64)
    outcomes = np.stack([factorial.log_likelihood(rows, made.labels) for rows in logits], axis=1)
    few = dataclasses.replace(made, images=made.images[:FEW], labels=made.labels[:FEW])
    np.testing.assert_allclose(outcomes[:FEW], expected_outcomes(few, effects), atol=2e-3)
    # Wrong or at chance before, sure and right after.
    assert outcomes[:, 0].mean() < np.log(0.5) + 0.01
    assert outcomes[:, -1].min() > np.log(0.9)
    gain = (outcomes[:, -1] - outcomes[:, 0]).mean()
    causes, carried = EXPECTED[name]
    for effect, share in zip(effects, shapley(outcomes).mean(0) / gain, strict=True):
        assert share == pytest.approx(causes.get(effect, 0), abs=0.02), effect
    numbers = summarize_effects(measure(logits.swapaxes(0, 1), made.labels), streams, effects)
    assert tuple(through(numbers[outcome]) for outcome in OUTCOMES) == carried


def study(made: Constructed, clip: Clip, folder: Path) -> Study:
    constructed_clip = with_weights(clip, made.clip.state)
    task = Task(constructed_clip, "vpt", NAMES, tokens=2, depth=1)
    models = [
        Model("zero_shot", "Zero-shot", "zero_shot", Task(constructed_clip, "zero_shot", NAMES), {}),
        Model("tuned", "Tuned", "vpt", task, {"vision_prompts": jnp.asarray(made.prompts, jnp.float32)}),
    ]
    mean, deviation = (np.asarray(x) for x in (constructed_clip.preprocessing.mean, constructed_clip.preprocessing.std))
    options = StudyOptions(batch_size=IMAGES // 2, control_images=3)
    images = constructed.split(made, mean, deviation)
    return Study(models, images, options, folder, training=images)


@pytest.mark.parametrize(
    ("name", "vector", "kind"),
    [
        pytest.param("kinds", False, True, marks=pytest.mark.long),
        pytest.param("constant", True, True, marks=pytest.mark.long),
        pytest.param("image", False, False, marks=pytest.mark.long),
    ],
)
def test_a_study_of_image_files_comes_to_the_same(name, vector, kind, reference, clip, tmp_path):
    """Half the images at a time, from files, through the sections to the verdict: which constants do, and which not."""
    made = CONSTRUCTED[name](reference, IMAGES)
    made_study = study(made, clip, tmp_path)
    sections = ("factorial", "constants", "verdict")
    results = run_study(made_study, tmp_path, dataset="constructed", sections=sections)
    test = results.causal_test("tuned")
    constants = results.constant_test("tuned")
    assert test is not None and constants is not None and test.random is not None
    assert test.effects == factorial.WITH_SLOTS
    assert test.streams == tuple(factorial.streams(test.effects))
    few = dataclasses.replace(made, images=made.images[:FEW], labels=made.labels[:FEW])
    likelihood = test.outcomes.log_likelihood[:FEW, 0]
    # Pixels are rounded to eight bits.
    np.testing.assert_allclose(likelihood, expected_outcomes(few, test.effects), atol=0.02)
    right = made.labels == results.predictions.models["tuned"]
    np.testing.assert_array_equal(test.outcomes.correct[:, 0, 7], right)
    np.testing.assert_array_equal(test.outcomes.images, np.arange(IMAGES))
    # The control: other prompts of the same length, on some of the images.
    few = test.random.outcomes.images
    np.testing.assert_array_equal(few, [0, IMAGES // 2, IMAGES - 1])
    control = test.random.outcomes.log_likelihood
    trained = test.outcomes.log_likelihood
    np.testing.assert_allclose(control[..., 0], trained[few, :, 0], rtol=1e-5)
    assert np.abs(control[..., 7] - trained[few, :, 7]).max() > 1e-2
    verdict = results.verdict_on(["tuned"])
    assert verdict is not None and verdict.through == ByOutcome("tokens", "tokens")
    shares = constants.summary.calibrated.kept
    for form, does in (("vector", vector), ("kind", kind)):
        low = shares[form].share.low
        high = shares[form].share.high
        assert low > 0.9 if does else high < 0.5, (form, low, high)
    # These towers are so plain that a constant does in any of their layers: only its direction matters.
    assert shares["random"].share.high < 0.9 or name == "image"
