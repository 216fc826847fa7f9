"""Pictures of every kind as the model takes them, features in batches, and what is no image."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import clipbias
from clipbias.clip import Clip, encode_image, encode_text
from clipbias.clip.encode import check_images
from clipbias.clip.text import as_tokens
from clipbias.data.given import label_numbers, listed, picture
from clipbias.errors import ClipbiasError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 30, 22, 3), dtype=np.uint8)
TEXTS = ["a cat.", "a dog on the grass.", "x"]


def expected(pixels: np.ndarray, clip: Clip) -> np.ndarray:
    """Shorter side to R, centre crop, normalised in float64."""
    size, own = clip.config.vision.image_size, clip.preprocessing
    height, width = pixels.shape[:2]
    scaled = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    image = Image.fromarray(pixels).resize(scaled, Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in scaled)
    cut = np.asarray(image.crop((left, top, left + size, top + size)), np.float64)
    return (cut / 255 - own.mean) / own.std


def test_pictures_of_every_kind_are_the_same_picture(clip: Clip, tmp_path: Path) -> None:
    wanted = np.stack([expected(pixels, clip) for pixels in PIXELS[:2]])
    Image.fromarray(PIXELS[0]).save(path := tmp_path / "a.png")
    for one in (path, str(path), Image.fromarray(PIXELS[0]), PIXELS[0], jax.numpy.asarray(PIXELS[0])):
        found = clip.preprocess(one)
        assert found.dtype == np.float32 and found.shape == wanted.shape[1:]
        np.testing.assert_allclose(found, wanted[0], atol=2e-6)
        np.testing.assert_array_equal(clip.preprocess([one]), found[None])
    for several in (PIXELS[:2], [path, Image.fromarray(PIXELS[1])], tuple(PIXELS[:2])):
        np.testing.assert_allclose(clip.preprocess(several), wanted, atol=2e-6)
    np.testing.assert_allclose(clip.preprocess([PIXELS[0], PIXELS[1][:25]])[0], wanted[0], atol=2e-6)


def test_grey_and_transparent_pictures() -> None:
    grey = PIXELS[0, ..., 0]
    for image in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(picture(image), np.repeat(grey[..., None], 3, -1))
    clear = np.concatenate([PIXELS[0], np.zeros((30, 22, 1), np.uint8)], -1)
    np.testing.assert_array_equal(picture(clear), PIXELS[0])
    assert listed(PIXELS[..., 0])[1] is False and listed(grey)[1] is True


def test_features_of_batches_are_those_of_each_image(clip: Clip) -> None:
    images = clip.preprocess(PIXELS)
    wanted = np.asarray(jax.jit(encode_image, static_argnums=1)(clip.params, clip.config, images)[0])
    found = clip.encode_images(PIXELS, batch_size=3)
    assert found.dtype == np.float32 and isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(clip.encode_images(images, batch_size=3), wanted, atol=1e-5)
    unit = clip.encode_images(list(PIXELS), batch_size=3, normalize=True)
    np.testing.assert_allclose(unit, wanted / np.linalg.norm(wanted, axis=-1, keepdims=True), atol=1e-5)
    assert clip.encode_images(PIXELS[0], batch_size=3).shape == clip.encode_images(images[0], batch_size=3).shape
    assert clip.encode_images([]).shape == (0, clip.config.projection_width)
    assert clip.device_params is clip.device_params
    np.testing.assert_array_equal(clip.encode_images(PIXELS, batch_size=3, dtype="auto"), found)  # on a CPU


def test_features_of_texts(clip: Clip) -> None:
    ids = clip.tokenize(TEXTS)
    tokens = as_tokens(ids, clip.config)
    wanted = np.asarray(jax.jit(lambda params: encode_text(params, clip.config, tokens)[0])(clip.params))
    np.testing.assert_allclose(clip.encode_texts(TEXTS, batch_size=2), wanted, atol=1e-5)
    lengths = np.linalg.norm(clip.encode_texts(TEXTS, batch_size=2, normalize=True), axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_a_compute_type_that_is_none_is_one_sentence(clip: Clip) -> None:
    for encode, given in ((clip.encode_images, PIXELS), (clip.encode_texts, TEXTS)):
        with pytest.raises(ClipbiasError, match=r"^dtype is 'float16'; choose from auto, float32,"):
            encode(given, dtype="float16")


NO_PICTURES: list[tuple[Any, str]] = [
    ("nowhere.png", "cannot read the image .*nowhere.png"),
    (5, "the images are 5; give a path, a PIL image"),
    (np.zeros((4, 4, 3)), "image 0 holds float64 numbers; give uint8 levels from 0 to 255"),
    (np.zeros((3, 8, 9), np.uint8)[None], r"image 0 has shape \[3, 8, 9\]; give .*channels come last"),
    ([np.zeros((4, 4, 3), np.uint8), None], "image 1 is None; give a path"),
    (np.zeros((4,), np.uint8), r"an array of shape \[4\]"),
]


@pytest.mark.parametrize(("images", "message"), NO_PICTURES)
def test_what_is_no_picture(images: Any, message: str, clip: Clip) -> None:
    with pytest.raises(ClipbiasError, match=message):
        clip.preprocess(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 16, 16, 3), np.uint8), "the images are uint8, so they are not normalised; give clip.preprocess"),
        (
            np.zeros((16, 16, 3), np.float32),
            r"shape \[16, 16, 3\]; give \[B, 16, 16, 3\]; of a single one, images\[",
        ),
        (np.zeros((2, 3, 16, 16), np.float32), r"shape \[2, 3, 16, 16\]; give \[B, 16, 16, 3\], as clip.preprocess"),
        (np.zeros((2, 12), np.float32), r"shape \[2, 12\]"),
    ],
)
def test_what_no_tower_takes_for_images(images: np.ndarray, message: str, clip: Clip) -> None:
    task = clipbias.Task(clip, "bias", ("cat", "dog"))
    learnables, labels = task.init(), np.array([0, 1])
    for call in (
        lambda: check_images(images, 16),
        lambda: task.logits(clip.params, learnables, images),
        lambda: jax.eval_shape(task.loss, clip.params, learnables, images, labels),
        lambda: task.image_features(clip.params, learnables, images),
        lambda: clipbias.relevancy(task, clip.params, learnables, images, labels),
    ):
        with pytest.raises(ClipbiasError, match=message):
            call()


def test_checks_add_nothing_to_a_compiled_program(clip: Clip) -> None:
    task = clipbias.Task(clip, "bias", ("cat", "dog"))
    images = np.zeros((2, 16, 16, 3), np.float32)
    plain = jax.make_jaxpr(lambda *given: task.classifier.logits(*given, task.text))(clip.params, task.init(), images)
    assert str(jax.make_jaxpr(task.logits)(clip.params, task.init(), images)) == str(plain)


def test_labels_by_number_and_by_name() -> None:
    names = ("cat", "dog")
    for given in (["dog", "cat"], [1, 0], np.array([1, 0], np.uint8), jax.numpy.array([1, 0])):
        np.testing.assert_array_equal(label_numbers(given, names), [1, 0])
    for given, message in (
        (["cow"], "the label 'cow' is no class"),
        ([2], "labels go from 2 to 2; there are 2 classes"),
        ([-1], "from -1"),
        ([[0]], "give numbers or names"),
        ([0.5], "float64"),
        ("cat", "give a list"),
    ):
        with pytest.raises(ClipbiasError, match=message):
            label_numbers(given, names)


def test_a_model_and_a_task_are_told_in_a_line(clip: Clip) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(clip.params))
    assert f"{count:,} parameters, float32" in repr(clip) and "16 px in 16 patches" in repr(clip)
    task = clipbias.Task(clip, "bias", ("cat", "dog", "cow", "hen"))
    assert repr(task).startswith("Task('bias' of ") and "cat, dog, cow, … (4 classes)" in repr(task)
    assert max(map(len, (repr(clip), repr(task)))) < 400 and "array" not in repr(clip) + repr(task)
