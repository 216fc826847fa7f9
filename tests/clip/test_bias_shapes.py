"""A bias of every shape, in every layout of tokens, against plain NumPy: features and gradients.

One vector per layer, two by kind (the token that is read out, all others), or one for each position.
"""

import functools

import jax
import numpy as np
import pytest

from clipbias.clip import Adaptation, Clip, encode_image, encode_packed_text, encode_text, pack
from clipbias.clip.text import as_tokens
from tests import helpers
from tests.reference import numpy_clip
from tests.reference.differences import along_directions
from tests.reference.methods import Reference
from tests.reference.weights import deterministic_uniform

pytestmark = pytest.mark.ci

VALUES, GRADIENTS = 3e-6, 2e-5  # rounding of float32, relative to an array's largest number
LENGTHS = (1, 5, 2, 2, 9)  # words of the texts; the last one fills more than half of a tile
PROMPTS = 2
# Shape of the bias, prompts and layout of the tokens.
VISION = [("vector", 0, "fused"), ("kind", PROMPTS, "fused"), ("token", 0, "fused"), ("token", PROMPTS, "explicit")]
VISION += [("vector", PROMPTS, "fused"), ("kind", PROMPTS, "explicit")]
TEXT = [("token", 0, "packed"), ("kind", PROMPTS, "chunks"), ("token", PROMPTS, "explicit"), ("vector", 0, "packed")]
TEXT += [("kind", PROMPTS, "explicit"), ("kind", PROMPTS, "fused"), ("kind", PROMPTS, "three groups")]
CASES = [*(("vision", *case) for case in VISION), *(("text", *case) for case in TEXT)]
SHORT = [("vision", *case) for case in VISION[1:4]] + [("text", *case) for case in TEXT[:3]]


@pytest.fixture(scope="module")
def both(tiny) -> tuple[Clip, Reference]:
    return tiny(vision=(16, 3, 2), text=(12, 3, 2), image_size=8, context_length=20)


def draw(number: int, *shape: int) -> np.ndarray:
    return np.float32(0.3) * deterministic_uniform(number, 0, shape)


def draw_bias(config: dict, tower: str, shape: str) -> np.ndarray:
    sizes = config[f"{tower}_config"]
    tokens = 20 if tower == "text" else 1 + (sizes["image_size"] // sizes["patch_size"]) ** 2
    rows = {"vector": (), "kind": (2,), "token": (tokens,)}[shape]
    return draw(11 if tower == "text" else 12, sizes["num_hidden_layers"], *rows, sizes["hidden_size"])


def close(actual: jax.Array, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert np.abs(np.asarray(actual, np.float64) - expected).max() < VALUES * np.abs(expected).max()


@pytest.mark.parametrize(("tower", "shape", "prompts", "layout"), helpers.short(CASES, *SHORT, unpack=True))
def test_features_and_gradients_equal_numpy(both, tower, shape, prompts, layout):
    """Prompts are replaced at the second block, and not at the last."""
    clip, reference = both
    added = draw_bias(reference.config, tower, shape)
    images = helpers.random_images(reference.config, 3)
    ids = helpers.random_tokens(reference.config, LENGTHS)
    ids[:, 1 : 1 + PROMPTS] = 7  # the same words in all texts
    deep = draw(13, 2 if tower == "vision" else 1, prompts, added.shape[-1]) if prompts else None

    def plain(bias):
        if tower == "vision":
            inputs, encode, learned = images, numpy_clip.encode_image, deep
        else:
            inputs, encode, learned = ids, numpy_clip.encode_text, deep if deep is None else {1: deep[0]}
        return encode(reference.state, reference.config, inputs, prompts=learned, bias=bias).features

    expected = plain(added.astype(float))
    cotangent = draw(14, *expected.shape)
    tokens = as_tokens(ids, clip.config, prompts)
    observe = (lambda view: None) if layout == "explicit" else None

    def run(adaptation):
        if tower == "vision":
            features = encode_image(clip.params, clip.config, images, adaptation, observe=observe)[0]
        elif layout in ("explicit", "fused"):
            features = encode_text(clip.params, clip.config, tokens, adaptation, observe=observe)[0]
        else:
            groups, chunks = {"packed": (1, 1), "three groups": (3, 1), "chunks": (4, 2)}[layout]
            packed = pack(tokens, groups=groups)
            features = encode_packed_text(clip.params, clip.config, packed, adaptation, chunks=chunks)
        return (features * cotangent).sum(), features

    adaptation = Adaptation(**{f"{tower}_bias": added, f"{tower}_prompts": deep})
    (_, features), gradients = jax.jit(jax.value_and_grad(run, has_aux=True))(adaptation)
    close(features, expected)
    # Layer by layer, so that none hides another's.
    gradient = dict(enumerate(getattr(gradients, f"{tower}_bias")))
    layers = dict(enumerate(added))
    errors = along_directions(lambda x: (plain(np.stack([*x.values()])) * cotangent).sum(), layers, gradient)
    assert max(errors.values()) < GRADIENTS, errors


def test_features_of_patches(both):
    """By kind, patches get the vector of all others in the last block too."""
    clip, reference = both
    images = helpers.random_images(reference.config, 2)
    added = draw_bias(reference.config, "vision", "kind")
    last = numpy_clip.encode_image(reference.state, reference.config, images, bias=added.astype(float)).last
    encode = jax.jit(functools.partial(encode_image, config=clip.config, patches=True))
    features, _ = encode(clip.params, images=images, adaptation=Adaptation(vision_bias=added))
    close(features, numpy_clip.project(reference.state, reference.config, "vision", last))


def test_only_one_vector_per_layer_changes_weights(both):
    for shape in ("vector", "kind", "token"):
        adaptation = Adaptation(vision_bias=draw_bias(both[1].config, "vision", shape))
        assert adaptation.only_changes_weights == (shape == "vector")
