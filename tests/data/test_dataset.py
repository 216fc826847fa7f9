"""Splits and datasets: subsets, class selection, and what they refuse."""

import numpy as np
import pytest

from clipbias.data.dataset import Dataset, Split
from clipbias.errors import ClipbiasError


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
    chosen = dataset.with_classes([2, 0])
    assert chosen.class_names == ("c", "a")
    assert chosen.splits["test"].labels.tolist() == [1, 0, 1, 0]
    assert chosen.splits["test"].keys[1] == "image_2.jpg"
    assert chosen.splits["test"].read(1) == b"bytes 2"


def test_class_names_may_repeat():
    assert Dataset("set", ("missile", "missile"), "{}", {"test": make_split([0, 1])}).class_names[1] == "missile"


@pytest.mark.parametrize("template", ["a photo.", "{} and {}", "a {name}.", "a {0}.", "{"])
def test_template_needs_one_place(template):
    with pytest.raises(ClipbiasError, match="exactly one"):
        Dataset("set", ("a",), template, {})


def test_label_out_of_range_is_named():
    with pytest.raises(ClipbiasError, match=r"image_1\.jpg in val has label 5"):
        Dataset("set", ("a", "b"), "{}", {"val": make_split([0, 5])})


def test_repeated_key_and_missing_split():
    with pytest.raises(ClipbiasError, match=r"x\.jpg is listed twice"):
        Split(("x.jpg", "y.jpg", "x.jpg"), [0, 0, 0], lambda index: b"")
    with pytest.raises(ClipbiasError, match="has no train images; it has test"):
        Dataset("set", ("a",), "{}", {"test": make_split([0])}).split("train")
