"""Which images a model learns from without their labels."""

import dataclasses

import numpy as np

from clipbias.data import Dataset, Split
from clipbias.data.held_out import divide_unlabelled, unlabelled_images


def split(*keys: str) -> Split:
    return Split(keys, np.arange(len(keys)), lambda index: keys[index].encode(), source="letters")


DATA = Dataset("letters", tuple("abc"), "{}", {"train": split("a", "b"), "val": split("b", "c"), "test": split("d")})


def read(images: Split | None) -> list[bytes]:
    assert images is not None and not images.labels.any()
    return [images.read(index) for index in range(len(images))]


def test_training_and_validation_images_each_once():
    assert read(unlabelled_images(DATA, DATA.split("test"))) == [b"a", b"b", b"c"]


def test_no_image_that_is_evaluated():
    assert read(unlabelled_images(DATA, DATA.split("val"))) == [b"a", b"b"]
    assert read(unlabelled_images(DATA, DATA.split("train"))) == [b"c"]
    alone = dataclasses.replace(DATA, splits={"test": split("d")})
    assert unlabelled_images(alone, alone.split("test")) is None


def test_a_fifth_is_held_back_whatever_the_labels():
    images = split(*map(str, range(50)))
    fitted, held_back, rest = divide_unlabelled(images)
    assert (len(fitted), len(held_back), len(rest)) == (40, 10, 0)
    other = dataclasses.replace(images, labels=images.labels[::-1])
    assert [part.keys for part in divide_unlabelled(other)] == [fitted.keys, held_back.keys, rest.keys]
    parts = divide_unlabelled(images, certified=True)
    assert [len(part) for part in parts] == [30, 10, 10] and parts[1].keys == held_back.keys
