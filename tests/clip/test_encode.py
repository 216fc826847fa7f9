"""Pictures of every kind as the model takes them, features in batches, and what is no image."""

import jax
import numpy as np
import pytest
from PIL import Image

import clipbias
from clipbias.clip import Clip, encode_image, encode_text
from clipbias.clip.text import as_tokens
from clipbias.data.user_images import label_numbers, list_images, to_picture
from clipbias.training import mesh as meshes

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 30, 22, 3), dtype=np.uint8)
TEXTS = ["a cat.", "a dog on the grass.", "x"]


def expected(pixels: np.ndarray, clip: Clip) -> np.ndarray:
    """Shorter side to R, centre crop, normalised in float64."""
    size = clip.config.vision.image_size
    preprocessing = clip.preprocessing
    height, width = pixels.shape[:2]
    scaled = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    image = Image.fromarray(pixels).resize(scaled, Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in scaled)
    cut = np.asarray(image.crop((left, top, left + size, top + size)), np.float64)
    return (cut / 255 - preprocessing.mean) / preprocessing.std


def test_pictures_of_every_kind_are_the_same_picture(clip, tmp_path):
    expectation = np.stack([expected(pixels, clip) for pixels in PIXELS[:2]])
    Image.fromarray(PIXELS[0]).save(path := tmp_path / "a.png")
    for picture in (path, str(path), Image.fromarray(PIXELS[0]), PIXELS[0], jax.numpy.asarray(PIXELS[0])):
        values = clip.preprocess(picture)
        assert values.dtype == np.float32 and values.shape == expectation.shape[1:]
        np.testing.assert_allclose(values, expectation[0], atol=2e-6)
        np.testing.assert_array_equal(clip.preprocess([picture]), values[None])
    for pictures in (PIXELS[:2], [path, Image.fromarray(PIXELS[1])], tuple(PIXELS[:2])):
        np.testing.assert_allclose(clip.preprocess(pictures), expectation, atol=2e-6)
    np.testing.assert_allclose(clip.preprocess([PIXELS[0], PIXELS[1][:25]])[0], expectation[0], atol=2e-6)


def test_grey_and_transparent_pictures():
    grey = PIXELS[0, ..., 0]
    for image in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(np.asarray(to_picture(image)), grey)
    clear = np.concatenate([PIXELS[0], np.zeros((30, 22, 1), np.uint8)], -1)
    np.testing.assert_array_equal(np.asarray(to_picture(clear)), clear)
    assert list_images(PIXELS[..., 0])[1] is False and list_images(grey)[1] is True


@pytest.mark.ci
def test_features_of_batches_are_those_of_each_image(clip):
    images = clip.preprocess(PIXELS)
    reference = np.asarray(jax.jit(encode_image, static_argnums=1)(clip.params, clip.config, images)[0])
    features = clip.encode_images(PIXELS, batch_size=3)
    assert features.dtype == np.float32 and isinstance(features, np.ndarray)
    np.testing.assert_allclose(features, reference, atol=1e-5)
    np.testing.assert_allclose(clip.encode_images(images, batch_size=3), reference, atol=1e-5)
    unit = clip.encode_images(list(PIXELS), batch_size=3, normalize=True)
    np.testing.assert_allclose(unit, reference / np.linalg.norm(reference, axis=-1, keepdims=True), atol=1e-5)
    assert clip.encode_images(PIXELS[0], batch_size=3).shape == clip.encode_images(images[0], batch_size=3).shape
    assert clip.encode_images([]).shape == (0, clip.config.projection_width)
    np.testing.assert_array_equal(clip.encode_images(PIXELS, batch_size=3, dtype="auto"), features)  # on a CPU


@pytest.mark.ci
def test_features_of_texts(clip):
    ids = clip.tokenize(TEXTS)
    tokens = as_tokens(ids, clip.config)
    reference = np.asarray(jax.jit(lambda params: encode_text(params, clip.config, tokens)[0])(clip.params))
    np.testing.assert_allclose(clip.encode_texts(TEXTS, batch_size=2), reference, atol=1e-5)
    lengths = np.linalg.norm(clip.encode_texts(TEXTS, batch_size=2, normalize=True), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_weights_are_where_they_are_used():
    """A call copies none of them to the device, and a mesh of that device shares them. On the host they are NumPy's."""
    clip = clipbias.load("demo")
    images = jax.device_put(np.zeros((1, 48, 48, 3), np.float32))
    task = clipbias.Task(clip, "bias", ("cat", "dog"))
    learnables = jax.device_put(task.init())
    with jax.transfer_guard_host_to_device("disallow"):
        jax.block_until_ready(jax.jit(task.logits)(clip.params, learnables, images))
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    placed = meshes.place_weights(mesh, clip.params, "float32")
    for there, here in zip(jax.tree.leaves(placed), jax.tree.leaves(clip.params), strict=True):
        assert there.unsafe_buffer_pointer() == here.unsafe_buffer_pointer()
    on_host = clipbias.load("demo", device="host")
    assert {type(leaf) for leaf in jax.tree.leaves(on_host.params)} == {np.ndarray}
    jax.tree.map(np.testing.assert_array_equal, on_host.params, clip.params)


def test_checks_add_nothing_to_a_compiled_program(clip):
    task = clipbias.Task(clip, "bias", ("cat", "dog"))
    images = np.zeros((2, 16, 16, 3), np.float32)
    plain = jax.make_jaxpr(lambda *args: task.classifier.logits(*args, task.text))(clip.params, task.init(), images)
    assert str(jax.make_jaxpr(task.logits)(clip.params, task.init(), images)) == str(plain)


def test_labels_by_number_and_by_name():
    names = ("cat", "dog")
    for labels in (["dog", "cat"], [1, 0], np.array([1, 0], np.uint8), jax.numpy.array([1, 0])):
        np.testing.assert_array_equal(label_numbers(labels, names), [1, 0])


def test_a_model_and_a_task_are_told_in_a_line(clip):
    count = sum(leaf.size for leaf in jax.tree.leaves(clip.params))
    assert f"{count:,} parameters, float32" in repr(clip) and "16 px in 16 patches" in repr(clip)
    task = clipbias.Task(clip, "bias", ("cat", "dog", "cow", "hen"))
    assert repr(task).startswith("Task('bias' of ") and "cat, dog, cow, … (4 classes)" in repr(task)
    assert max(map(len, (repr(clip), repr(task)))) < 400 and "array" not in repr(clip) + repr(task)
