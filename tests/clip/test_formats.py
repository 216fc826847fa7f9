"""One model in every format, made by the format's own writer (`tools/reference`)."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Clip, encode_image, encode_text
from tests import helpers
from tests.reference import formats
from tests.reference.weights import read_config

ROUNDING = 3e-6  # of float32 in towers of two layers, relative to the largest number

# By writer, what lies there: folders as they are on the hub, and single files.
WRITTEN = {
    "flax": "flax",
    "torch": "transformers",
    "torch_sharded": "transformers",
    "open_clip": "open_clip",
    "open_clip_half": "open_clip",
    "openai/ViT-tiny.pt": "openai",
    "training/epoch_3.pt": "open_clip",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Clip:
    """The same weights without a detour: as safetensors in Hugging Face's names."""
    folder = tmp_path_factory.mktemp("original")
    settings = formats.config(folder)
    helpers.write_checkpoint(folder, settings, formats.state(settings))
    return clipbias.load(folder)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(formats.FORMATS / "expected.safetensors")


def loaded(name: str) -> Clip:
    # A training checkpoint says nothing of its activation.
    return clipbias.load(formats.FORMATS / name, activation="quick_gelu" if name.startswith("training") else None)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_same_weights_are_the_same_model(name, original):
    clip = loaded(name)
    jax.tree.map(np.testing.assert_array_equal, clip.params, original.params)
    assert (clip.fingerprint, clip.config) == (original.fingerprint, original.config)
    library = "transformers" if (formats.FORMATS / name / "config.json").exists() else "open_clip"
    resizing = dataclasses.replace(original.preprocessing.resizing, library=library)
    assert clip.preprocessing == dataclasses.replace(original.preprocessing, resizing=resizing)
    texts = ["a photo of a cat.", "757-200"]
    np.testing.assert_array_equal(clip.tokenize(texts), original.tokenize(texts))


def test_inputs_and_weights_are_those_of_the_script(original, expected):
    """So that the files can be made anew, and compared with what the reference computes."""
    settings = read_config(formats.FORMATS / "torch")
    for name, value in formats.inputs(settings).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.fixture(scope="module")
def features(original, expected) -> dict[str, jax.Array]:
    encoders = {"image": (encode_image, expected["images"]), "text": (encode_text, expected["tokens"].astype(np.int32))}
    return {
        f"{name}_features": jax.jit(encode, static_argnums=1)(original.params, original.config, inputs)[0]
        for name, (encode, inputs) in encoders.items()
    }


@pytest.mark.parametrize("writer", sorted(set(WRITTEN.values())))
def test_features_equal_the_writers_own(writer, features, expected):
    for name, value in features.items():
        theirs = expected[f"{writer}.{name}"]
        assert theirs.shape == value.shape
        assert np.abs(value - theirs).max() / np.abs(theirs).max() < ROUNDING
