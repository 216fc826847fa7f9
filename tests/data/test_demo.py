"""The demo datasets: what they promise to whoever loads them."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from clipbias.data import demo
from clipbias.errors import ClipbiasError


@pytest.mark.parametrize("name", demo.NAMES)
def test_every_split_has_every_class_equally_often(name):
    dataset = demo.load(f"demo/{name}")
    assert len(dataset.class_names) == len(set(dataset.class_names)) == 10
    for split_name, size in demo.SPLIT_SIZES.items():
        counts = np.bincount(dataset.splits[split_name].labels, minlength=10)
        np.testing.assert_array_equal(counts, np.full(10, size))


@pytest.mark.parametrize("name", demo.NAMES)
def test_images_are_deterministic_and_all_different(name):
    first, second = demo.load(f"demo/{name}"), demo.load(f"demo/{name}")
    seen = set()
    for split_name in demo.SPLIT_SIZES:
        for index in (0, 25, 79):
            encoded = first.splits[split_name].read(index)
            assert encoded == second.splits[split_name].read(index)
            seen.add(encoded)
    assert len(seen) == 9


@pytest.mark.parametrize("name", demo.NAMES)
def test_images_decode_to_colour_pictures_with_content(name):
    split = demo.load(f"demo/{name}").splits["val"]
    image = np.asarray(Image.open(io.BytesIO(split.read(3))))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert image.std() > 5


def test_a_drawn_split_is_ready_in_about_a_second():
    split = demo.load("demo/shapes").splits["train"]
    began = time.process_time()
    for index in range(len(split)):
        split.read(index)
    assert time.process_time() - began < 2


def test_digits_are_the_scans_of_scikit_learn():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    split = demo.load("demo/digits").splits["test"]
    image = np.asarray(Image.open(io.BytesIO(split.read(200))))[..., 0].astype(float)
    # Averages of 8 x 8 blocks undo the enlargement closely enough to find the scan again.
    small = image.reshape(8, 8, 8, 8).mean((1, 3)) * (16 / 255)
    distance = np.abs(bunch.images - small).mean((1, 2))
    assert bunch.target[distance.argmin()] == split.labels[200]
    assert distance.min() < 1.2 < np.median(distance)


def test_splits_share_no_digit():
    dataset = demo.load("demo/digits")
    images = [split.read(i) for split in dataset.splits.values() for i in range(0, len(split), 5)]
    assert len(set(images)) == len(images)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ClipbiasError, match=r"demo/flowers.*demo/digits"):
        demo.load("demo/flowers")
