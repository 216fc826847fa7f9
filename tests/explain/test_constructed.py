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
from clipbias.explain.causal import Corner, Stream, mix_images
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.results import What, Where
from clipbias.explain.run import run_study
from clipbias.explain.study import Study
from clipbias.tuning import Task
from tests.explain import constructed
from tests.explain.constructed import CONSTRUCTED, NAMES, Constructed
from tests.reference import causal, methods, numpy_clip

IMAGES = 48
FEW = 6
# What attention alone and tokens alone have of the gain in log-likelihood.
EXPECTED: dict[str, tuple[float | None, float | None]] = {
    "attention": (1, 0),
    "both": (None, None),
    "scale": (0, 1),
    "constant": (0, 1),
    "kinds": (0, 1),
    "image": (0, 1),
    "attention, bias": (1, 0),
    "constant, bias": (0, 1),
}


def with_weights(clip: Clip, state: dict[str, np.ndarray]) -> Clip:
    tensors = {
        name: Tensor(value.shape, "float32", lambda value=value: value.astype(np.float32))
        for name, value in state.items()
    }
    return dataclasses.replace(clip, params=checkpoint.from_tensors(clip.config, tensors, where="a test"))


def expected_outcomes(made: Constructed) -> np.ndarray:
    """[B, 4] the log-likelihood of images in every corner, in float64."""
    inputs = methods.prepare(made.clip, "zero_shot", NAMES, {})
    tuned = dataclasses.replace(inputs, vision_prompts=made.prompts, vision_bias=made.bias)
    runs = [causal.vision_run(made.clip, made.images, added) for added in (None, tuned)]
    texts = causal.text_run(made.clip, inputs).forward.features
    logits = [numpy_clip.logits(made.clip.state, causal.corner(*runs, *corner.name), texts) for corner in Corner]
    return np.stack([causal.log_likelihood(rows, made.labels) for rows in logits], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def corner_logits(config: Any, params: Any, images: jax.Array, tuned: Adaptation, texts: Any) -> Any:
    """[4, B, C] of the package."""
    mixed = mix_images(params, config, images, tuned, [Stream.corner(corner) for corner in Corner]).streams
    mixed, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (mixed, texts))
    return jnp.exp(params["logit_scale"]) * mixed @ texts.T


@pytest.mark.ci
@pytest.mark.parametrize("name", CONSTRUCTED)
def test_what_matters_is_found(name, reference, clip):
    made = CONSTRUCTED[name](reference, IMAGES)
    constructed_clip = with_weights(clip, made.clip.state)
    prompts, bias = (None if x is None else jnp.asarray(x, jnp.float32) for x in (made.prompts, made.bias))
    texts = Task(constructed_clip, "zero_shot", NAMES).text_features(constructed_clip.params, {})
    tuned = Adaptation(vision_prompts=prompts, vision_bias=bias)
    images = jnp.asarray(made.images, jnp.float32)
    logits = corner_logits(constructed_clip.config, constructed_clip.params, images, tuned, texts)
    logits = np.asarray(logits, np.float64)
    outcomes = np.stack([causal.log_likelihood(rows, made.labels) for rows in logits], axis=1)
    few = dataclasses.replace(made, images=made.images[:FEW], labels=made.labels[:FEW])
    np.testing.assert_allclose(outcomes[:FEW], expected_outcomes(few), atol=2e-3)
    # Wrong or at chance before, sure and right after.
    assert outcomes[:, 0].mean() < np.log(0.5) + 0.01
    assert outcomes[:, -1].min() > np.log(0.9)
    frozen, attention, tokens, tuned = outcomes.mean(0)
    for alone, share in zip((attention, tokens), EXPECTED[name], strict=True):
        part = (alone - frozen) / (tuned - frozen)
        assert 0.2 < part < 0.8 if share is None else part == pytest.approx(share, abs=0.02)


def study(made: Constructed, clip: Clip, folder: Path) -> Study:
    constructed_clip = with_weights(clip, made.clip.state)
    task = Task(constructed_clip, "vpt", NAMES, tokens=2, depth=1)
    models = [
        Model("zero_shot", "Zero-shot", "zero_shot", Task(constructed_clip, "zero_shot", NAMES), {}),
        Model("tuned", "Tuned", "vpt", task, {"vision_prompts": jnp.asarray(made.prompts, jnp.float32)}),
    ]
    mean, deviation = (np.asarray(x) for x in (constructed_clip.preprocessing.mean, constructed_clip.preprocessing.std))
    options = StudyOptions(batch_size=IMAGES // 2)
    images = constructed.split(made, mean, deviation)
    return Study(models, images, options, folder, training=images)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "what"), [("kinds", What.SAME), ("constant", What.SAME), ("image", What.DEPENDS), ("scale", What.NOTHING)]
)
def test_a_study_of_image_files_comes_to_the_same(name, what, reference, clip, tmp_path):
    """Half the images at a time, from files, through the sections to the verdict."""
    made = CONSTRUCTED[name](reference, IMAGES)
    results = run_study(study(made, clip, tmp_path), tmp_path, dataset="constructed", sections=("causal",))
    test = results.causal.models["tuned"]
    right = made.labels == results.predictions.models["tuned"]
    np.testing.assert_array_equal(test.outcomes.correct[:, test.ways.index("tuned")], right)
    np.testing.assert_array_equal(test.outcomes.images, np.arange(IMAGES))
    (method,) = results.methods
    assert (method.labels.where, method.labels.what) == (Where.NOT_ATTENTION, what), method.sentence
