"""Features and logits against `transformers.CLIPModel`, from its own tiny checkpoints and at ViT-B/16's geometry."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Clip, config, encode_image, encode_text, tables
from clipbias.clip.formats import Tensor
from tests import helpers
from tests.reference import weights
from tests.reference.cases import TINY, VIT_B_16

DATA = Path(__file__).parents[1] / "data_files"
ROUNDING = 3e-6  # of float32 in towers of three layers, relative to the largest number


image_encoder = jax.jit(encode_image, static_argnums=1, static_argnames="observe")
text_encoder = jax.jit(encode_text, static_argnums=1, static_argnames="observe")


def difference(actual: jax.Array, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected number."""
    assert actual.shape == expected.shape
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module", params=TINY)
def tiny(request) -> tuple[Clip, dict[str, np.ndarray]]:
    """A checkpoint as `transformers` saved it, and the outputs of `CLIPModel`."""
    folder = DATA / request.param
    return clipbias.load(folder), safetensors.numpy.load_file(folder / "expected.safetensors")


@pytest.mark.parametrize("explicit", [False, True])
def test_features_equal_transformers(tiny, explicit):
    clip, expected = tiny
    observe = (lambda view: view.probabilities) if explicit else None
    images, _ = image_encoder(clip.params, clip.config, expected["images"], observe=observe)
    texts, _ = text_encoder(clip.params, clip.config, expected["tokens"].astype(np.int32), observe=observe)
    assert difference(images, expected["image_features"]) < ROUNDING
    assert difference(texts, expected["text_features"]) < ROUNDING
    scaled = jnp.exp(clip.params["logit_scale"]) * images / jnp.linalg.norm(images, axis=-1, keepdims=True)
    logits = scaled @ (texts / jnp.linalg.norm(texts, axis=-1, keepdims=True)).T
    assert difference(logits, expected["logits"]) < ROUNDING


@pytest.mark.ci
def test_vit_b_16_equals_transformers():
    """The full geometry, its weights drawn from their seed."""
    settings = weights.geometry(**VIT_B_16)
    expected = safetensors.numpy.load_file(DATA / "vit_b_16.safetensors")
    state = weights.random_state_dict(settings, seed=16)
    import transformers

    tensors = {
        name: Tensor(value.shape, value.dtype.name, functools.partial(state.pop, name)) for name, value in state.items()
    }
    geometry = config.from_hugging_face(transformers.CLIPConfig(**settings))
    params = tables.from_tensors(geometry, tensors, where="the reference")
    images = helpers.random_images(settings, 2)
    tokens = helpers.random_tokens(settings, (5, 30, 75))

    @functools.partial(jax.jit, static_argnums=1)
    def encode(params, geometry, images, tokens):
        return encode_image(params, geometry, images)[0], encode_text(params, geometry, tokens)[0]

    image_features, text_features = encode(params, geometry, images, tokens)
    assert difference(image_features, expected["image_features"]) < 3 * ROUNDING
    assert difference(text_features, expected["text_features"]) < 3 * ROUNDING
