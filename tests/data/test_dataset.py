"""Splits and datasets: subsets, class selection, what they refuse and lack, and counts of images in words."""

import numpy as np
import pytest
from scipy.stats import binomtest

from clipbias import data
from clipbias.data.confusion import binomial_error
from clipbias.data.dataset import Dataset, Split
from clipbias.data.few_shot import SMALL, accuracy_words, images_per_class, range_words, wilson_interval
from clipbias.data.files import split_of_files
from clipbias.data.sources import describe_missing, open_datasets
from clipbias.errors import ClipbiasError, UnreadableImage
from tests.data.pictures import write


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


# What is said to be missing before anything is trained


def dataset_of(name: str, **labels: list[int]) -> Dataset:
    splits = {
        split: Split([f"{split}/{number}" for number in range(len(numbers))], np.array(numbers, int), lambda index: b"")
        for split, numbers in labels.items()
    }
    return Dataset(name, tuple("abcdefg"), "a {}.", splits)


def test_two_images_in_all_leave_none_to_evaluate_on(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / name / "1.png")
    message = describe_missing(data.load("folder", data_dir=tmp_path), trains=True)
    assert message == "folder has no test images to evaluate on (it has train: cat 1, dog 1); add some."


def test_what_is_needed_depends_on_what_is_done():
    assert describe_missing(dataset_of("x", train=[0], test=[1]), trains=True) is None
    evaluated = dataset_of("x", test=[0, 1, 2, 3, 4, 5, 5])
    assert describe_missing(evaluated, trains=False) is None
    message = describe_missing(evaluated, trains=True)
    assert message == (
        "x has no train images to train on (it has test: a 1, b 1, c 1, d 1, e 1 and 1 more classes); add some."
    )
    assert "(it has no image)" in describe_missing(dataset_of("x", train=[]), trains=True)


def test_all_that_is_wrong_is_said_at_once_or_left_out(caplog):
    there = {"whole": dataset_of("whole", train=[0], test=[1]), "cut": dataset_of("cut", train=[0])}

    def load(name):
        if name not in there:
            raise ClipbiasError(f"{name}: there is no folder /data/{name}; check data_dir.")
        return there[name]

    requests = {"whole": True, "cut": True, "gone": False}
    with pytest.raises(ClipbiasError) as raised:
        open_datasets(load, requests)
    first, second, last = str(raised.value).splitlines()
    assert "cut has no test images" in first and "no folder /data/gone" in second
    assert last == "No run was started. Fix it, or pass --config.on_missing=skip."
    assert list(open_datasets(load, requests, skip=True)) == ["whole"]
    assert caplog.text.count("Left out: ") == 2
    with pytest.raises(ClipbiasError, match=r"No run was started\. Fix it\.$"):
        open_datasets(load, {"gone": False}, skip=True)


# Counts of images in numbers and words, and intervals of accuracies on few images against SciPy


@pytest.mark.parametrize(("correct", "images"), [(0, 1), (1, 1), (11, 12), (12, 12), (0, 40), (30, 99), (990, 1000)])
def test_the_interval_is_scipys(correct, images):
    expected = binomtest(correct, images).proportion_ci(0.95, "wilson")
    low, high = wilson_interval(100 * correct / images, images)
    np.testing.assert_allclose((low, high), (100 * expected.low, 100 * expected.high), atol=1e-9)
    if images < SMALL:
        np.testing.assert_allclose(
            binomial_error(100 * correct / images, images), (high - low) / 2 / 1.959964, rtol=1e-6
        )


def test_the_error_of_many_images_is_binomial():
    assert binomial_error(90, SMALL) == pytest.approx(100 * np.std([1] * 90 + [0] * 10) / 10)


def test_counts_in_words():
    assert images_per_class(np.array([0, 2, 2, 2]), 3) == [0, 3] and images_per_class(np.array([1, 0]), 2) == [1, 1]
    assert range_words([16, 16]) == "16" and range_words([6, 16]) == "6 to 16" and range_words([1200]) == "1,200"
    assert accuracy_words(91.6667, 12) == "91.67 % of 12 test images (95 % interval 64.6 to 98.5)"
    assert accuracy_words(50, 1000) == "50.00 % of 1,000 test images"
    assert accuracy_words(100, 1, "val image") == "100.00 % of 1 val image (95 % interval 20.7 to 100.0)"
