"""Splits and datasets: subsets, class selection, and what they refuse."""

import numpy as np
import pytest

from clipbias.data.dataset import Dataset, Split
from clipbias.data.files import split_of_files
from clipbias.errors import UnreadableImage


def make_split(labels) -> Split:
    keys = tuple(f"image_{index}.jpg" for index in range(len(labels)))
    return Split(keys, labels, lambda index: f"bytes {index}".encode())


def test_subset_reads_the_right_image_twice_over():
    split = make_split([0, 1, 2, 0]).subset([3, 1, 2]).subset([2, 0])
    assert split.keys == ("image_2.jpg", "image_3.jpg")
    assert split.labels.tolist() == [2, 0] and split.labels.dtype == np.int32
    assert [split.read(index) for index in range(2)] == [b"bytes 2", b"bytes 3"]


def test_with_classes_renumbers_in_the_given_order():
    dataset = Dataset("set", ("a", "b", "c"), "a {}.", {"test": make_split([0, 1, 2, 0, 2])})
    subset = dataset.with_classes([2, 0])
    assert subset.class_names == ("c", "a")
    assert subset.splits["test"].labels.tolist() == [1, 0, 1, 0]
    assert subset.splits["test"].keys[1] == "image_2.jpg"
    assert subset.splits["test"].read(1) == b"bytes 2"


def test_class_names_may_repeat():
    assert Dataset("set", ("missile", "missile"), "{}", {"test": make_split([0, 1])}).class_names[1] == "missile"


def test_a_message_has_the_path(tmp_path):
    split = split_of_files(tmp_path, ["a/b.png", "c.png"], [0, 1], listed_in="list.csv")
    with pytest.raises(
        UnreadableImage, match=r"cannot read the image .*c\.png, listed in list\.csv: No such"
    ) as raised:
        split.image(1)
    assert raised.value.path == str(tmp_path / "c.png")
    (tmp_path / "c.png").write_bytes(b"x")
    with pytest.raises(UnreadableImage, match=r"c\.png cannot be decoded") as raised:
        split.subset([1]).image(0)
    assert raised.value.path == str(tmp_path / "c.png")
