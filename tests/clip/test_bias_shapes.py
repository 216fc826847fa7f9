"""A bias of every shape, in every layout of tokens, against plain NumPy: features and gradients.

One vector per layer, two by kind (the token that is read out, all others), or one for each position.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import Adaptation, Clip, encode_image, encode_packed_text, encode_text, pack
from clipbias.clip.text import as_tokens
from tests import helpers
from tests.reference import numpy_clip
from tests.reference.differences import along_directions
from tests.reference.methods import Reference
from tests.reference.weights import deterministic_uniform

pytestmark = pytest.mark.ci

SHAPES = ("vector", "kind", "token")
# Rounding of float32, relative to an array's largest number
VALUES = 3e-6
GRADIENTS = 2e-5
LENGTHS = (1, 5, 2, 2, 9)  # words of the texts; the last one fills more than half of a tile
PROMPTS = 2


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Clip, Reference]:
    folder = tmp_path_factory.mktemp("tiny")
    reference = helpers.tiny_checkpoint(folder, vision=(16, 3, 2), text=(12, 3, 2), image_size=8, context_length=20)
    clip = clipbias.load(folder)
    return dataclasses.replace(clip, params=jax.device_put(clip.params)), reference


def draw(number: int, *shape: int) -> np.ndarray:
    return np.float32(0.3) * deterministic_uniform(number, 0, shape)


def bias(config: dict, tower: str, shape: str) -> np.ndarray:
    sizes = config[f"{tower}_config"]
    tokens = (
        sizes["max_position_embeddings"] if tower == "text" else 1 + (sizes["image_size"] // sizes["patch_size"]) ** 2
    )
    rows = {"vector": (), "kind": (2,), "token": (tokens,)}[shape]
    return draw(11 if tower == "text" else 12, sizes["num_hidden_layers"], *rows, sizes["hidden_size"])


def close(actual: jax.Array, expected: np.ndarray, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert np.abs(np.asarray(actual, np.float64) - expected).max() < tolerance * np.abs(expected).max()


def close_to_differences(function: Callable[[np.ndarray], float], bias: np.ndarray, gradient: jax.Array) -> None:
    """Layer by layer, so that none hides another's."""
    layers = dict(enumerate(bias))
    errors = along_directions(lambda x: function(np.stack([*x.values()])), layers, dict(enumerate(gradient)))
    assert max(errors.values()) < GRADIENTS, errors


def both_ways(encode, adaptation: Adaptation, cotangent: np.ndarray):
    """Features, and the gradient of their product with the cotangent."""

    def run(adaptation):
        features = encode(adaptation)
        return (features * cotangent).sum(), features

    (_, features), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(adaptation)
    return features, gradient


@pytest.mark.parametrize(
    ("shape", "prompts", "explicit"),
    helpers.short(
        [
            *((shape, prompts, False) for shape in SHAPES for prompts in (0, PROMPTS)),
            ("kind", PROMPTS, True),
            ("token", PROMPTS, True),
        ],
        ("kind", PROMPTS, False),
        ("token", 0, False),
        ("token", PROMPTS, True),
        unpack=True,
    ),
)
def test_vision(both, shape, prompts, explicit):
    clip, reference = both
    images = helpers.random_images(reference.config, 3)
    added = bias(reference.config, "vision", shape)
    deep = draw(13, 2, prompts, added.shape[-1]) if prompts else None  # replaced at the second block, not at the last

    def encode(bias):
        prompts = None if deep is None else deep.astype(float)
        return numpy_clip.encode_image(reference.state, reference.config, images, prompts=prompts, bias=bias).features

    expected = encode(added.astype(float))
    cotangent = draw(14, *expected.shape)
    observe = (lambda view: None) if explicit else None
    features, gradients = both_ways(
        lambda adaptation: encode_image(clip.params, clip.config, images, adaptation, observe=observe)[0],
        Adaptation(vision_bias=added, vision_prompts=deep),
        cotangent,
    )
    close(features, expected, VALUES)
    close_to_differences(lambda bias: (encode(bias) * cotangent).sum(), added, gradients.vision_bias)


@pytest.mark.parametrize(
    ("shape", "prompts", "layout"),
    helpers.short(
        [
            *((shape, 0, "packed") for shape in SHAPES),
            *(("kind", PROMPTS, layout) for layout in ("chunks", "explicit", "plain", "three groups")),
            *(("token", PROMPTS, layout) for layout in ("explicit", "plain")),
        ],
        *(("token", 0, "packed"), ("kind", PROMPTS, "chunks"), ("token", PROMPTS, "explicit")),
        unpack=True,
    ),
)
def test_text(both, shape, prompts, layout):
    clip, reference = both
    ids = helpers.random_tokens(reference.config, LENGTHS)
    added = bias(reference.config, "text", shape)
    ids[:, 1 : 1 + PROMPTS] = 7  # the same words in all texts
    deep = draw(15, 1, prompts, added.shape[-1]) if prompts else None

    def plain(bias):
        prompts = {} if deep is None else {1: deep[0].astype(float)}
        return numpy_clip.encode_text(reference.state, reference.config, ids, prompts=prompts, bias=bias).features

    expected = plain(added.astype(float))
    cotangent = draw(16, *expected.shape)
    tokens = as_tokens(ids, clip.config, prompts)

    def encode(adaptation):
        if layout in ("explicit", "plain"):
            observe = (lambda view: None) if layout == "explicit" else None
            return encode_text(clip.params, clip.config, tokens, adaptation, observe=observe)[0]
        groups, chunks = {"packed": (1, 1), "three groups": (3, 1), "chunks": (4, 2)}[layout]
        return encode_packed_text(clip.params, clip.config, pack(tokens, groups=groups), adaptation, chunks=chunks)

    features, gradients = both_ways(encode, Adaptation(text_bias=added, text_prompts=deep), cotangent)
    close(features, expected, VALUES)
    close_to_differences(lambda bias: (plain(bias) * cotangent).sum(), added, gradients.text_bias)


def test_features_of_patches(both):
    """By kind, patches get the vector of all others in the last block too."""
    clip, reference = both
    images = helpers.random_images(reference.config, 2)
    added = bias(reference.config, "vision", "kind")
    expected = numpy_clip.encode_image(reference.state, reference.config, images, bias=added.astype(float)).last
    expected = numpy_clip.layer_norm(reference.state, "vision_model.post_layernorm", 1e-5, expected)
    expected = expected @ reference.state["visual_projection.weight"].T
    encode = jax.jit(functools.partial(encode_image, config=clip.config, patches=True))
    features, _ = encode(clip.params, images=images, adaptation=Adaptation(vision_bias=added))
    close(features, expected, VALUES)


def test_only_one_vector_per_layer_changes_weights(both):
    _, reference = both
    for shape in SHAPES:
        adaptation = Adaptation(vision_bias=bias(reference.config, "vision", shape))
        assert adaptation.only_changes_weights == (shape == "vector")
