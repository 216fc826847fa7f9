"""Towers of which it is known what makes tuning work: the mixtures of both runs must say so."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Adaptation, Clip, convert
from clipbias.clip.tensors import Tensor
from clipbias.explain.factorial import CONSTANTS, corners, effects_in_play, mix_images
from clipbias.explain.uncertainty import shapley
from clipbias.tuning import Task
from tests.explain import constructed
from tests.explain.constructed import CONSTRUCTED, NAMES, Constructed
from tests.reference import factorial, methods, numpy_clip, weights
from tests.reference.tokenizer import SimpleTokenizer

FOLDER = Path(__file__).parents[1] / "data_files" / "tiny_quick_gelu"
IMAGES = 8
# What makes each of them work; and what one vector per layer, and one for each token, keep of the gain.
EXPECTED = {
    "attention": ("attention", 0.0, 0.0),
    "scale": ("scale", 0.0, 0.0),
    "constant": ("values", 1.0, 1.0),
    "kinds": ("values", 0.0, 1.0),
    "image": ("values", 0.0, 0.0),
    "attention, bias": ("attention", None, None),
    "constant, bias": ("values", None, None),
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


def outcomes_of_reference(made: Constructed, effects: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The log-likelihood of every image under every mixture, in float64."""
    inputs = methods.prepare(made.clip, "zero_shot", NAMES, {})
    tuned = dataclasses.replace(inputs, vision_prompts=made.prompts, vision_bias=made.bias)
    runs = [factorial.vision_run(made.clip, made.images, own) for own in (None, tuned)]
    texts, means = factorial.text_run(made.clip, inputs).forward.features, factorial.means(runs[1:])
    found = {}
    for stream in factorial.streams(effects):
        features = factorial.features(*runs, stream, effects, means)
        logits = numpy_clip.logits(made.clip.state, features, texts)
        found[stream] = factorial.log_likelihood(logits, made.labels)
    return found


def outcomes_of_product(made: Constructed, clip: Clip, effects: tuple[str, ...]) -> dict[str, np.ndarray]:
    own = with_weights(clip, made.clip.state)
    task = Task(own, "zero_shot", NAMES)
    numbers = [None if x is None else jnp.asarray(x, jnp.float32) for x in (made.prompts, made.bias)]
    tuned = Adaptation(vision_prompts=numbers[0], vision_bias=numbers[1])
    streams = (*corners(effects), *(CONSTANTS if made.bias is None else ()))
    inputs = methods.prepare(made.clip, "zero_shot", NAMES, {})
    run = factorial.vision_run(made.clip, made.images, dataclasses.replace(inputs, vision_prompts=made.prompts))
    means = {
        kind: value[:, : 1 + constructed.PATCHES].astype(np.float32) if kind == "token" else value[:, None]
        for kind, value in factorial.means([run]).items()
    }

    texts = task.text_features(own.params, {})
    found = logits(streams, own.config, own.params, jnp.asarray(made.images, jnp.float32), tuned, means, texts)
    return {
        stream: factorial.log_likelihood(np.asarray(one, np.float64), made.labels)
        for stream, one in zip(streams, found, strict=True)
    }


def logits(streams: Any, config: Any, params: Any, images: Any, tuned: Any, means: Any, texts: Any) -> jax.Array:
    mixed = mix_images(params, config, images, tuned, Adaptation(), streams, means).streams
    mixed, texts = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (mixed, texts))
    return jnp.exp(params["logit_scale"]) * mixed @ texts.T


logits = jax.jit(logits, static_argnums=(0, 1))


@pytest.mark.parametrize("name", CONSTRUCTED)
@pytest.mark.parametrize("of", ["reference", "product"])
def test_what_matters_is_found(name, of, plain, clip):
    made = CONSTRUCTED[name](plain, IMAGES)
    effects = effects_in_play(made.bias is None)
    found = outcomes_of_reference(made, effects) if of == "reference" else outcomes_of_product(made, clip, effects)
    gain = found["P" * len(effects)] - found["R" * len(effects)]
    # Wrong or at chance before, sure and right after.
    assert found["R" * len(effects)].mean() < np.log(0.5) + 0.01
    assert found["P" * len(effects)].min() > np.log(0.9)
    cause, vector, token = EXPECTED[name]
    parts = shapley(np.stack([found[corner] for corner in corners(effects)], axis=1))
    np.testing.assert_allclose(parts.sum(1), gain, atol=1e-6)
    shares = dict(zip(effects, parts.mean(0) / gain.mean(), strict=True))
    assert shares.pop(cause) == pytest.approx(1, abs=0.02)
    assert max(map(abs, shares.values())) < 0.02
    for kind, expected in (("vector", vector), ("token", token)):
        if expected is not None:
            kept = (found[f"RR:{kind}"] - found["R" * len(effects)]).mean() / gain.mean()
            assert kept == pytest.approx(expected, abs=0.08), kind
