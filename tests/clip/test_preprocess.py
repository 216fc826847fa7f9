"""Pixels against those of transformers and open_clip; pictures of every kind, and features in batches."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import clipbias
from clipbias.clip import ClipConfig, Preprocessing, TextConfig, VisionConfig, encode_image, encode_text
from clipbias.clip.encode import preprocess
from clipbias.clip.preprocess import of_open_clip, preprocessor_json, read_preprocessor
from clipbias.clip.text import as_tokens
from clipbias.training import placement

# What `tools/reference/write_pixels.py` of commit 879c20d8 stored: pixels by those libraries.
EXPECTED = Path(__file__).parents[1] / "data_files" / "pixels.safetensors"
SIZE = 8  # of the model's images

_CUT = {"height": SIZE, "width": SIZE}
_CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIZE}, "crop_size": _CUT}
_SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": _CUT}
# The content of `preprocessor_config.json`.
TRANSFORMERS: dict[str, dict] = {
    "clip": _CLIP,
    "old": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 10, "crop_size": SIZE, "resample": 2},
    "square then crop": _CLIP | {"size": {"height": 10, "width": 10}, "do_center_crop": True},
    "square": _CLIP | {"size": _CUT, "do_center_crop": False, "resample": 1},
    "no mean": _CLIP | {"do_normalize": False, "image_processor_type": "CLIPImageProcessorFast"},
    "siglip": _SIGLIP,
    "siglip 2": _SIGLIP | {"resample": 2, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.5, 0.25, 0.125]},
    "vit": {"image_processor_type": "ViTImageProcessor", "size": SIZE},
}
# The `preprocess_cfg` of `open_clip_config.json`.
OPEN_CLIP: dict[str, dict] = {
    "default": {},
    "shortest": {"interpolation": "bilinear", "resize_mode": "shortest", "mean": [0, 0, 0], "std": [1, 1, 1]},
    "squash": {"resize_mode": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "pe": {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


def pictures() -> dict[str, Image.Image]:
    """Of odd sizes, transparent, grey, with a palette, in CMYK and of one bit, by name."""
    random = np.random.default_rng(5)

    def noise(height: int, width: int, *channels: int) -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (height, width, *channels), dtype=np.uint8))

    palette = noise(17, 13, 3).quantize(16)
    see_through = palette.copy()
    see_through.info["transparency"] = 3
    return {
        "square": noise(8, 8, 3),
        "margin of 3": noise(11, 8, 3),
        "another margin of 3": noise(16, 38, 3),
        "odd": noise(41, 60, 3),
        "small": noise(3, 5, 3),
        "transparent": noise(23, 15, 4),
        "grey": noise(19, 16),
        "transparent grey": noise(9, 12, 2),
        "palette": palette,
        "palette with transparency": see_through,
        "ink": noise(15, 22, 4).convert("RGB").convert("CMYK"),
        "one bit": noise(20, 27).convert("1"),
    }


CONFIG = ClipConfig(
    VisionConfig(8, 1, 1, 8, image_size=SIZE, patch_size=4),
    TextConfig(8, 1, 1, 8, vocabulary_size=9, context_length=8, eos_token_id=8),
    projection_width=8,
)
ROUNDING = 1e-6


def read(content: Any, folder: Path, name: str = "preprocessor_config.json") -> Preprocessing:
    (folder / name).write_text(json.dumps(content))
    return read_preprocessor(folder, CONFIG)


def recipes(folder: Path) -> dict[str, Preprocessing]:
    """Each recipe by the name of its expected"""
    by_source = {f"transformers.{name}": read(content, folder) for name, content in TRANSFORMERS.items()}
    return by_source | {f"open_clip.{name}": of_open_clip(w, SIZE) for name, w in OPEN_CLIP.items()}


def test_pixels_equal_the_publishers(tmp_path):
    expected = safetensors.numpy.load_file(EXPECTED)
    made = recipes(tmp_path)
    assert made.keys() == expected.keys()
    for name, preprocessing in made.items():
        ours_of_all = preprocess(preprocessing, [*pictures().values()])
        for picture, ours, theirs in zip(pictures(), ours_of_all, expected[name], strict=True):
            assert np.abs(ours - theirs).max() < ROUNDING, (name, picture)


def test_what_is_written_gives_the_same_pixels(tmp_path):
    for name, preprocessing in recipes(tmp_path).items():
        again = read(json.loads(preprocessor_json(preprocessing)), tmp_path)
        assert again == preprocessing, name


def test_transformers_makes_the_same_pixels_of_what_is_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    expected = safetensors.numpy.load_file(EXPECTED)
    for name in TRANSFORMERS:
        content = json.loads(preprocessor_json(recipes(tmp_path)[f"transformers.{name}"]))
        processor = getattr(transformers, content["image_processor_type"] + "Pil").from_dict(content)
        for picture, theirs in zip(pictures().values(), expected[f"transformers.{name}"], strict=True):
            ours = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
            assert np.abs(ours - theirs).max() < ROUNDING, name


def test_processor_config_counts_where_it_has_the_images_settings(tmp_path):
    read(TRANSFORMERS["clip"], tmp_path)
    assert read({"processor_class": "CLIPProcessor"}, tmp_path, "processor_config.json").resizing.whole is False
    square = read({"image_processor": TRANSFORMERS["siglip"]}, tmp_path, "processor_config.json")
    assert square.resizing.whole and square.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("words", "content"),
    [
        ("resizes the shorter side without a centre crop", {"do_center_crop": False}),
        ("makes images of 6 pixels where the model takes 8", {"crop_size": 6}),
        ("resizes pictures to 1000000 pixels where the model takes 8; .* at most 32", {"size": 1_000_000}),
        ("names the image processor 'DonutImageProcessor'", {"image_processor_type": "DonutImageProcessor"}),
        ("has rescale_factor = 0.5", {"rescale_factor": 0.5}),
        ("has size = .*longest_edge.*clipbias follows", {"size": {"shortest_edge": 8, "longest_edge": 9}}),
        ("is not a preprocessor configuration", {"image_std": [0.5, 0, 0.5]}),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(words, content, tmp_path):
    with pytest.raises(clipbias.ClipbiasError, match=rf"^/.*preprocessor_config\.json {words}"):
        read(TRANSFORMERS["clip"] | content, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("resize_mode", "longest"), ("interpolation", "area"), ("mode", "L")])
def test_what_open_clip_asks_for_and_cannot_have(name, value):
    with pytest.raises(clipbias.ClipbiasError, match=rf"preprocess_cfg\.{name} = '{value}'; clipbias follows"):
        of_open_clip({name: value}, 8)


# Pictures of every kind as the model takes them, features in batches, and what is no image


PIXELS = np.random.default_rng(0).integers(0, 256, (7, 30, 22, 3), dtype=np.uint8)
TEXTS = ["a cat.", "a dog on the grass.", "x"]


@pytest.mark.ci
def test_features_of_batches_are_those_of_each_image(clip):
    images = clip.preprocess(PIXELS)
    reference = np.asarray(jax.jit(encode_image, static_argnums=1)(clip.params, clip.config, images)[0])
    features = clip.encode_images(PIXELS, batch_size=3)
    np.testing.assert_allclose(features, reference, atol=1e-5)
    np.testing.assert_allclose(clip.encode_images(images, batch_size=3), reference, atol=1e-5)
    unit = clip.encode_images(list(PIXELS), batch_size=3, normalize=True)
    np.testing.assert_allclose(unit, reference / np.linalg.norm(reference, axis=-1, keepdims=True), atol=1e-5)
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
    mesh = placement.make_mesh(devices=jax.devices()[:1])
    placed = placement.place_weights(mesh, clip.params, "float32")
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
