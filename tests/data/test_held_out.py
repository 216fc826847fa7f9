"""Which images are held out: the rule of docs/datasets.md, counted by hand."""

import dataclasses
import os

import numpy as np
import pytest

from clipbias.data import Dataset, Split, from_arrays, held_out, load, protocols
from clipbias.data.folder import complete_splits
from clipbias.data.held_out import divide_unlabelled, hold_out, unlabelled_images
from clipbias.data.user_images import image_list
from tests.data.pictures import picture, write
from tests.documents import ROOT


def split(*counts: int, name: str = "a") -> Split:
    """So many images of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return Split([f"{name}/{number}" for number in range(len(labels))], labels, lambda index: b"")


def counts(part: Split | None, classes: int = 3) -> list[int]:
    return np.bincount(part.labels, minlength=classes).tolist() if part is not None else []


@pytest.mark.parametrize(
    ("images", "count_held"),
    [
        ((3, 3, 3), 1),  # one has to choose, two remain
        ((8, 8, 8), 2),
        ((10, 30, 400), 2),  # as many of each class, whatever there is
        ((100, 100, 100), 16),
        ((0, 12, 12), 3),  # a class that is only named
    ],
)
def test_a_quarter_of_each_class_at_most(images, count_held):
    train = split(*images)
    held = hold_out(train, None, seed=1)
    assert held.choose is not None and held.from_training and held.calibrate is None and not held.reason
    assert counts(held.choose) == [count_held if count else 0 for count in images]
    assert counts(held.train) == [count - count_held if count else 0 for count in images]
    assert sorted(held.train.keys + held.choose.keys) == sorted(train.keys)
    again = hold_out(train, split(0, 0, 0), seed=1)
    assert again.choose is not None and again.choose.keys == held.choose.keys


@pytest.mark.parametrize(
    ("images", "words"), [((2, 9, 9), "a class with 2 training images"), ((0, 0, 0), "there is no training image")]
)
def test_a_class_with_two_images_has_none_to_spare(images, words):
    train = split(*images)
    held = hold_out(train, None, seed=1, calibrates=True)
    assert held.choose is None and held.train is train and words in held.reason


@pytest.mark.parametrize(("classes", "pictures", "rejecting"), [(2, 96, 196), (5, 90, 190), (10, 80, 180)])
def test_a_folder_calibrates_from_as_many_pictures_on_as_the_page_says(classes, pictures, rejecting):
    """Ten calibration images, and the nineteen that "none of these" takes."""
    page = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
    assert f"- {classes} classes: {pictures} and {rejecting} pictures\n" in page

    def calibrating(of_class: int) -> int:
        splits = complete_splits({"all": split(*[of_class] * classes)}, "here")
        protocol = protocols.full(Dataset("own", tuple(map(str, range(classes))), "{}", splits))
        images = held_out.left_to_calibrate(protocol, 1, selects=True)
        return 0 if images is None else len(images)

    for fewest, of_all in ((10, pictures), (19, rejecting)):
        assert calibrating(of_all // classes) >= fewest > calibrating(of_all // classes - 1)


def test_the_validation_split_comes_first_and_no_image_has_two_uses():
    train = split(50, 50, 50)
    for validation, calibrates, choosing, calibrating in (
        ((9, 40, 1), False, [9, 16, 1], []),
        ((9, 40, 1), True, [5, 16, 1], [4, 24, 0]),
        ((6, 6, 7), True, [6, 6, 7], []),  # nine would be too few to calibrate by
        ((6, 6, 8), True, [3, 3, 4], [3, 3, 4]),
    ):
        held = hold_out(train, split(*validation, name="v"), seed=1, calibrates=calibrates)
        assert counts(held.choose) == choosing and counts(held.calibrate) == calibrating
        assert held.train is train and not held.from_training and held.choose is not None
        assert held.calibrate is None or not {*held.choose.keys} & {*held.calibrate.keys}


def test_a_protocol_by_the_rule():
    """Images of the test split are no validation images, and training images never calibrate."""
    dataset = Dataset("d", ("a", "b", "c"), "a {}.", {"train": split(8, 8, 8), "test": split(4, 4, 4, name="t")})
    protocol = held_out.by_the_rule(protocols.few_shot(dataset, shots=4, seed=3), 3)
    assert protocol.validation() is None and protocol.calibration is not None and protocol.calibration() is None
    held = held_out.hold_out_of(protocol, 3)
    assert counts(held.choose) == [1, 1, 1] and counts(held.train) == [3, 3, 3]
    tested = dataclasses.replace(dataset, splits={**dataset.splits, "val": dataset.split("test")})
    assert held_out.hold_out_of(protocols.full(tested), 3).from_training
    validated = dataclasses.replace(dataset, splits={**dataset.splits, "val": split(8, 8, 8, name="v")})
    protocol = held_out.by_the_rule(protocols.few_shot(validated, shots=4, seed=3), 3)
    assert protocol.calibration is not None
    assert counts(protocol.validation()) == counts(protocol.calibration()) == [4, 4, 4]


def test_a_shot_of_each_class_is_held_out():
    """It never trains, and nothing calibrates; a class with one image keeps it."""
    splits = {"train": split(8, 1, 8), "val": split(8, 8, 8, name="v"), "test": split(4, 4, 4, name="t")}
    protocol = protocols.few_shot(Dataset("d", ("a", "b", "c"), "a {}.", splits), shots=4, seed=3)
    held = held_out.hold_out_a_shot(protocol, 3)
    train = held.source.split("train")
    choosing = held.validation()
    assert choosing is not None and held.calibration is not None and held.calibration() is None
    assert counts(train) == [3, 1, 3] and counts(choosing) == [1, 0, 1]
    assert sorted(train.keys + choosing.keys) == sorted(protocol.source.split("train").keys)


def test_what_is_left_to_calibrate_has_no_other_use():
    """All validation images where nothing is selected; of many, as many of each class; training images never."""
    train, test = split(8, 8, 8), split(4, 4, 4, name="t")
    bare = Dataset("d", ("a", "b", "c"), "a {}.", {"train": train, "test": test})
    for protocol in (protocols.full(bare), protocols.few_shot(bare, shots=2, seed=3)):
        for selects in (False, True):
            assert held_out.left_to_calibrate(protocol, 3, selects=selects) is None
    left = held_out.left_to_calibrate(protocols.full(bare), 3, selects=False, trains=False)
    assert left is not None and left.keys == train.keys  # which nothing learned from

    def calibrating(*images: int, selects: bool) -> Split | None:
        dataset = dataclasses.replace(bare, splits={**bare.splits, "val": split(*images, name="v")})
        return held_out.left_to_calibrate(protocols.few_shot(dataset, shots=4, seed=3), 3, selects=selects)

    assert counts(calibrating(8, 8, 8, selects=False)) == [8, 8, 8]
    assert counts(calibrating(8, 8, 8, selects=True)) == [4, 4, 4]
    assert calibrating(3, 3, 3, selects=False) is None and calibrating(5, 6, 6, selects=True) is None
    assert counts(calibrating(400, 900, 10, selects=False)) == [334, 334, 10]


# Which images a model learns from without their labels


def letters(*keys: str) -> Split:
    return Split(keys, np.arange(len(keys)), lambda index: keys[index].encode(), source="letters")


DATA = Dataset(
    "letters", tuple("abc"), "{}", {"train": letters("a", "b"), "val": letters("b", "c"), "test": letters("d")}
)


def read(images: Split | None) -> list[bytes]:
    assert images is not None and not images.labels.any()
    return [images.read(index) for index in range(len(images))]


def test_training_and_validation_images_each_once_without_those_that_are_evaluated():
    assert read(unlabelled_images(DATA, DATA.split("test"))) == [b"a", b"b", b"c"]
    assert read(unlabelled_images(DATA, DATA.split("val"))) == [b"a"]
    assert read(unlabelled_images(DATA, DATA.split("train"))) == [b"c"]
    alone = dataclasses.replace(DATA, splits={"test": letters("d")})
    assert unlabelled_images(alone, alone.split("test")) is None


def test_no_copy_of_an_image_that_is_evaluated(tmp_path):
    """In memory and in files, under whatever path; the same pictures of a benchmark are its authors' choice."""
    pictures = [picture(number) for number in range(12)]
    labels, splits = ["a", "b"] * 7, ["train"] * 5 + ["val"] * 4 + ["test"] * 5
    memory = from_arrays([*pictures, pictures[2], pictures[6]], labels, splits=splits)
    for number, split in enumerate(splits):
        place = tmp_path / split / labels[number] / f"{number}.png"
        write(place, {12: 2, 13: 6}.get(number, number))
    os.link(tmp_path / "val" / "b" / "7.png", tmp_path / "test" / "b" / "linked.png")
    files = load("folder", data_dir=tmp_path)
    for dataset, left in ((memory, [0, 1, 3, 4, 5, 7, 8]), (files, [0, 1, 3, 4, 5, 8])):
        images = unlabelled_images(dataset, dataset.split("test"))
        assert images is not None
        decoded = [np.asarray(images.image(index)).tobytes() for index in range(len(images))]
        assert sorted(decoded) == sorted(pictures[number].tobytes() for number in left)
    benchmark = {name: dataclasses.replace(split, upright=False) for name, split in files.splits.items()}
    kept = unlabelled_images(dataclasses.replace(files, splits=benchmark), benchmark["test"])
    assert kept is not None and len(kept) == 9


def test_copies_are_not_in_two_parts():
    images = image_list([picture(number % 10) for number in range(40)], [0] * 40, ["a"])
    parts = divide_unlabelled(images, certified=True)
    contents = [{part.content(index) for index in range(len(part))} for part in parts]
    assert sum(map(len, contents)) == 10 == len(set.union(*contents))


def test_a_fifth_is_held_back_whatever_the_labels():
    images = letters(*map(str, range(50)))
    fitted, held_back, rest = divide_unlabelled(images)
    assert (len(fitted), len(held_back), len(rest)) == (40, 10, 0)
    other = dataclasses.replace(images, labels=images.labels[::-1])
    assert [part.keys for part in divide_unlabelled(other)] == [fitted.keys, held_back.keys, rest.keys]
    parts = divide_unlabelled(images, certified=True)
    assert [len(part) for part in parts] == [30, 10, 10] and parts[1].keys == held_back.keys
