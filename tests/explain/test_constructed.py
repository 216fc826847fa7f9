"""Towers of which it is known what makes tuning work: outcomes, shares and the verdict must say so."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Adaptation, Clip, convert, encode_image
from clipbias.clip.tensors import Tensor
from clipbias.explain.conclusions import carrier
from clipbias.explain.dataset_sections import compute_predictions
from clipbias.explain.decomposition import observe_parts
from clipbias.explain.effects import measure, summarize_effects
from clipbias.explain.factorial import CONSTANTS, corners, effects_in_play, mix_images, slot_means
from clipbias.explain.factorial_section import compute_factorial
from clipbias.explain.model import Model
from clipbias.explain.options import StudyOptions
from clipbias.explain.results import Findings
from clipbias.explain.study import Study
from clipbias.explain.tokens import vision_roles
from clipbias.explain.uncertainty import shapley
from clipbias.explain.verdict import verdict
from clipbias.tuning import Task
from tests.explain import constructed
from tests.explain.constructed import CONSTRUCTED, NAMES, Constructed
from tests.reference import factorial, methods, numpy_clip, weights
from tests.reference.tokenizer import SimpleTokenizer

FOLDER = Path(__file__).parents[1] / "data_files" / "tiny_quick_gelu"
IMAGES, FEW = 48, 6
# What each effect carries of the gain, the others nothing; what one vector per layer, and one for each token, keep; and
# how the conclusion begins.
EXPECTED: dict[str, tuple[dict[str, float], float | None, float | None, str]] = {
    "attention": ({"attention": 1}, 0, 0, "This favours (a): relative attention"),
    "both": ({"attention": 0.56, "values": 0.44}, 0.39, 0.39, "This favours (c), both: relative attention"),
    "scale": ({"scale": 1}, 0, 0, "This favours neither (a) nor (b): the attention that prompts take away"),
    "constant": ({"values": 1}, 1, 1, "This favours (b): what prompts add"),
    "kinds": ({"values": 1}, 0, 1, "This favours (b): what prompts add"),
    "image": ({"values": 1}, 0, 0, "This favours neither (a) nor (b): what prompts add"),
    "attention, bias": ({"attention": 1}, None, None, "This favours (a): relative attention"),
    "constant, bias": ({"values": 1}, None, None, "This favours (b), what is added to tokens"),
}


@pytest.fixture(scope="module")
def plain() -> methods.Reference:
    state = weights.double(safetensors.numpy.load_file(FOLDER / "model.safetensors"))
    return methods.Reference(state, weights.read_config(FOLDER), SimpleTokenizer(FOLDER, 24))


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clipbias.load(FOLDER)


def with_weights(clip: Clip, state: dict[str, np.ndarray]) -> Clip:
    tensors = {
        name: Tensor(value.shape, "float32", lambda value=value: value.astype(np.float32))
        for name, value in state.items()
    }
    return dataclasses.replace(clip, params=convert.from_tensors(clip.config, tensors, where="a test"))


def expected_outcomes(made: Constructed, effects: tuple[str, ...]) -> np.ndarray:
    """[B, K] the log-likelihood of images under every mixture, in float64."""
    inputs = methods.prepare(made.clip, "zero_shot", NAMES, {})
    tuned = dataclasses.replace(inputs, vision_prompts=made.prompts, vision_bias=made.bias)
    runs = [factorial.vision_run(made.clip, made.images, own) for own in (None, tuned)]
    texts, means = factorial.text_run(made.clip, inputs).forward.features, factorial.means(runs[1:])
    logits = [
        numpy_clip.logits(made.clip.state, factorial.features(*runs, stream, effects, means), texts)
        for stream in factorial.streams(effects)
    ]
    return np.stack([factorial.log_likelihood(one, made.labels) for one in logits], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def slot_moments(config: Any, params: Any, images: jax.Array, tuned: Adaptation) -> Any:
    """What slots add, over these images."""
    observe = observe_parts(vision_roles(config.vision, 2), jnp.zeros(len(images), jnp.int32))
    part = encode_image(params, config, images, tuned, observe=observe)[1]["part"]
    return jax.tree.map(lambda x: x[:, : 1 + config.vision.patches], part)


@functools.partial(jax.jit, static_argnums=(0, 1))
def mixed_logits(
    config: Any, streams: Any, params: Any, images: jax.Array, tuned: Adaptation, means: Any, texts: Any
) -> Any:
    """[K, B, C] of the package."""
    mixed = mix_images(params, config, images, tuned, Adaptation(), streams, means).streams
    mixed, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (mixed, texts))
    return jnp.exp(params["logit_scale"]) * mixed @ texts.T


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_what_matters_is_found(name, plain, clip):
    made = CONSTRUCTED[name](plain, IMAGES)
    effects = effects_in_play(made.bias is None)
    streams = (*corners(effects), *(CONSTANTS if made.bias is None else ()))
    own = with_weights(clip, made.clip.state)
    prompts, bias = (None if x is None else jnp.asarray(x, jnp.float32) for x in (made.prompts, made.bias))
    texts = Task(own, "zero_shot", NAMES).text_features(own.params, {})
    tuned, images = Adaptation(vision_prompts=prompts, vision_bias=bias), jnp.asarray(made.images, jnp.float32)
    means = slot_means(slot_moments(own.config, own.params, images, tuned)) if made.bias is None else None
    logits = mixed_logits(own.config, streams, own.params, images, tuned, means, texts)
    logits = np.asarray(logits, np.float64)
    found = np.stack([factorial.log_likelihood(one, made.labels) for one in logits], axis=1)
    few = dataclasses.replace(made, images=made.images[:FEW], labels=made.labels[:FEW])
    count = 2 ** len(effects)
    np.testing.assert_allclose(found[:FEW, :count], expected_outcomes(few, effects)[:, :count], atol=2e-3)
    # Wrong or at chance before, sure and right after.
    assert found[:, 0].mean() < np.log(0.5) + 0.01
    assert found[:, count - 1].min() > np.log(0.9)
    gain = (found[:, count - 1] - found[:, 0]).mean()
    causes, vector, token, conclusion = EXPECTED[name]
    for effect, share in zip(effects, shapley(found[:, :count]).mean(0) / gain, strict=True):
        assert share == pytest.approx(causes.get(effect, 0), abs=0.02), effect
    for kind, expected in (("vector", vector), ("token", token)):
        if expected is not None:
            kept = (found[:, streams.index(f"RR:{kind}")] - found[:, 0]).mean() / gain
            assert kept == pytest.approx(expected, abs=0.08), kind
    said = judged(found, made.labels[:, None] == logits.argmax(-1).T, effects, streams)
    assert said["conclusion"].startswith(conclusion), said["conclusion"]
    effects_found = summarize_effects(measure(np.moveaxis(logits, 0, 1), made.labels), streams, effects)
    expected = "shared" if len(causes) > 1 else next(iter(causes))
    for outcome in ("accuracy", "calibrated"):
        assert carrier(effects_found[outcome], outcome, prompts=made.bias is None).verdict == expected, outcome


def judged(likelihood: np.ndarray, correct: np.ndarray, effects: Any, streams: Any) -> dict[str, Any]:
    """The verdict on these outcomes, [n, K] each."""
    count, labels = 2 ** len(effects), np.zeros(len(correct), int)
    arrays = {
        "factorial/tuned/images": np.arange(len(correct)),
        "factorial/tuned/log_likelihood": likelihood[:, None].astype(np.float32),
        "factorial/tuned/correct": correct[:, None].astype(np.uint8),
        "predictions/labels": labels,
        "predictions/zero_shot": labels + ~correct[:, 0],
        "predictions/tuned": labels + ~correct[:, count - 1],
    }
    facts = {"effects": effects, "towers": ("both",), "streams": streams, "images": len(correct)}
    scalars = {
        "models": [described("zero_shot", "zero_shot", 0, correct), described("tuned", "vpt", count // 8 * 2, correct)],
        "factorial": {"tuned": facts},
    }
    return verdict(Findings(arrays, scalars), "tuned")


def described(key: str, method: str, prompts: int, correct: np.ndarray) -> dict[str, Any]:
    facts = {"key": key, "label": key, "method": method, "options": {}, "images": len(correct), "accuracy": 50.0}
    return facts | {"vision_prompts": prompts, "text_prompts": 0}


def study(made: Constructed, clip: Clip, folder: Path) -> Study:
    own = with_weights(clip, made.clip.state)
    task = Task(own, "vpt", NAMES, tokens=2, depth=1)
    models = [
        Model("zero_shot", "Zero-shot", "zero_shot", Task(own, "zero_shot", NAMES), {}),
        Model("tuned", "Tuned", "vpt", task, {"vision_prompts": jnp.asarray(made.prompts, jnp.float32)}),
    ]
    mean, deviation = (np.asarray(x) for x in (own.preprocessing.mean, own.preprocessing.std))
    options = StudyOptions(batch_size=IMAGES // 2, control_images=0)
    return Study(models, constructed.split(made, mean, deviation), options, folder)


def test_a_study_of_image_files_comes_to_the_same(plain, clip, tmp_path):
    """Half the images at a time, from files, through the sections to the verdict: two vectors do, one does not."""
    made = CONSTRUCTED["kinds"](plain, IMAGES)
    own = study(made, clip, tmp_path)
    arrays = own.read(compute_predictions(own))
    found, facts = own.read(compute_factorial(own))
    effects, streams = (tuple(facts["tuned"][name]) for name in ("effects", "streams"))
    assert (effects, streams) == (factorial.WITH_SLOTS, tuple(factorial.streams(effects)))
    few = dataclasses.replace(made, images=made.images[:FEW], labels=made.labels[:FEW])
    expected, likelihood = expected_outcomes(few, effects), found["factorial/tuned/log_likelihood"]
    # Pixels are rounded to eight bits, and constants are those of all images.
    np.testing.assert_allclose(likelihood[:FEW, 0], expected, atol=0.02)
    np.testing.assert_array_equal(found["factorial/tuned/correct"][:, 0, 7], made.labels == arrays["predictions/tuned"])
    correct = found["factorial/tuned/correct"][:, 0] > 0
    said = judged(likelihood[:, 0], correct, effects, streams)
    assert said["conclusion"].startswith(EXPECTED["kinds"][-1])
    shares = said["corners"]["log_likelihood"]["both"]
    assert shares["RR:token"]["share_low"] > 0.95 and shares["RR:vector"]["share_high"] < 0.1
