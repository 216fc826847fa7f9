"""Splits and datasets: subsets, what is missing, what tells image lists apart; counts of images in words."""

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from clipbias import data
from clipbias.data.dataset import Dataset, Split
from clipbias.data.few_shot import images_per_class, range_words
from clipbias.data.folder import from_hub_dataset
from clipbias.data.held_out import unlabelled_images
from clipbias.data.images import ImageCache, Images
from clipbias.data.protocols import validation_outside_test
from clipbias.data.sources import open_datasets
from clipbias.data.user_images import image_list
from clipbias.errors import ClipbiasError
from clipbias.intervals import SMALL, accuracy_words, binomial_error, wilson_interval
from tests.data.pictures import picture, write
from tests.data.test_own_images import table


def make_split(labels) -> Split:
    keys = tuple(f"image_{index}.jpg" for index in range(len(labels)))
    return Split(keys, labels, lambda index: f"bytes {index}".encode())


def test_subset_reads_the_right_image_twice_over():
    split = make_split([0, 1, 2, 0]).subset([3, 1, 2]).subset([2, 0])
    assert split.keys == ("image_2.jpg", "image_3.jpg")
    assert split.labels.tolist() == [2, 0] and split.labels.dtype == np.int32
    assert [split.read(index) for index in range(2)] == [b"bytes 2", b"bytes 3"]


@pytest.mark.parametrize(
    "kept", [[], [0, 0], [1, -1], [99], [True, False, True], [0.5], ["cat"], np.array([True, False])]
)
def test_classes_that_are_kept_are_labels(kept):
    with pytest.raises(ClipbiasError, match="each once"):
        Dataset("set", ("a", "b", "c"), "a {}.", {"test": make_split([0, 1, 2])}).with_classes(kept)


def test_with_classes_renumbers_in_the_given_order():
    dataset = Dataset("set", ("a", "b", "c"), "a {}.", {"test": make_split([0, 1, 2, 0, 2])})
    subset = dataset.with_classes([2, 0])
    assert subset.class_names == ("c", "a")
    assert subset.splits["test"].labels.tolist() == [1, 0, 1, 0]
    assert subset.splits["test"].keys[1] == "image_2.jpg"
    assert subset.splits["test"].read(1) == b"bytes 2"


# What is said to be missing before anything is trained.


def dataset_of(name: str, **labels: list[int]) -> Dataset:
    splits = {
        split: Split([f"{split}/{number}" for number in range(len(numbers))], np.array(numbers, int), lambda index: b"")
        for split, numbers in labels.items()
    }
    return Dataset(name, tuple("abcdefg"), "a {}.", splits)


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
    with pytest.raises(ClipbiasError, match=r"No run was started"):
        open_datasets(load, {"gone": False}, skip=True)


def test_what_is_wrong_with_classes_of_a_folder_is_said_once(tmp_path, caplog):
    """As `train` and `table1` open it, before the first run."""
    for seed, name in ((0, "train/cat/a"), (2, "train/dog/c"), (0, "test/dog/d"), (3, "test/cat/e")):
        write(tmp_path / f"{name}.png", seed)
    open_datasets(lambda name: data.load("folder", data_dir=tmp_path), {"a": True})
    pair = f"{tmp_path}/train/cat/a.png (cat) and {tmp_path}/test/dog/d.png (dog)"
    assert caplog.text.count("the same picture is in two classes") == 1 and pair in caplog.text


# Counts of images in numbers and words, and intervals of accuracies on few images against SciPy


@pytest.mark.parametrize(("correct", "images"), [(0, 1), (11, 12), (12, 12), (990, 1000)])
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
    assert range_words([16, 16]) == "16" and range_words([6, 16]) == "6 to 16"
    assert accuracy_words(91.6667, 12) == "91.67 % of 12 test images (95 % interval 64.6 to 98.5)"
    assert accuracy_words(50, 1000) == "50.00 % of 1,000 test images"


# Lists that differ are never taken for each other, and the same list is itself.

# The root of a list's files, the numbers of its pictures, and their label.
LISTS = [*itertools.product(("one", "two"), ([0], [1, 0], [0, 1], [2, 0, 1]), (0, 1))]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders with the same classes, file names and file sizes, and other pictures; and a link to the first."""
    top = tmp_path_factory.mktemp("roots")
    for seed, root in enumerate(("one", "two")):
        for label, name in enumerate(("cat", "dog")):
            for number in range(5):
                path = top / root / name / f"{number}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture(100 * seed + 10 * label + number)).save(path)
    (top / "link").symlink_to(top / "one")
    return top


def make_list(top: Path, root: str, numbers: list[int], label: int, kind: str = "files") -> Split:
    """Pictures in files, or the same ones in memory, as PIL images or as arrays."""
    pictures: list = [top / root / "cat" / f"{number}.bmp" for number in numbers]
    if kind != "files":
        pictures = [Image.open(path) for path in pictures]
    if kind == "arrays":
        pictures = [np.asarray(image) for image in pictures]
    return image_list(pictures, [label] * len(numbers), ("a", "b"))


def content(split: Split) -> list[object]:
    return [split.labels.tolist(), [split.image(index).tobytes() for index in range(len(split))]]


@pytest.mark.parametrize("kind", ["files", "images", "arrays"])
def test_digests_are_equal_where_the_lists_are(roots, kind):
    splits = [make_list(roots, *each, kind=kind) for each in 2 * LISTS]
    facts = [(content(split), split.digest, split.identity) for split in splits]
    for (one, *first), (two, *second) in itertools.product(facts, repeat=2):
        assert [a == b for a, b in zip(first, second, strict=True)] == 2 * [one == two]
    whole = make_list(roots, "one", [0, 1, 2], 0, kind)
    assert whole.subset([2, 0]).digest != whole.subset([0, 2]).digest == whole.subset([0, 1, 2]).subset([0, 2]).digest


@pytest.mark.parametrize(("first", "second"), [*itertools.product(LISTS[::2], LISTS[1::2])])
def test_images_are_told_apart_by_their_files(roots, first, second):
    """What one list has and another has not, and what a cache that both share gives for each."""
    one, two = make_list(roots, *first), make_list(roots, *second)
    rest = [number for number in first[1] if first[0] != second[0] or number not in second[1]]
    assert [os.path.basename(key) for key in one.without(two).keys] == [f"{number}.bmp" for number in rest]
    cache = ImageCache(1 << 20)
    for split in (one, two, one):
        images = Images(split, cache)
        for index in range(len(split)):
            np.testing.assert_array_equal(images.decoded(index), split.image(index))


def test_folders_of_equal_names(roots):
    one, two, link = (data.load("folder", data_dir=roots / name) for name in ("one", "two", "link"))
    keys, identities = (
        [getattr(each.split("test"), name) for each in (one, two, link)] for name in ("keys", "identity")
    )
    assert keys[0] == keys[1] and identities[0] == identities[2] != identities[1]
    # The validation images of one folder are no test images of the other, and both are trained on without labels.
    assert validation_outside_test(one.split("test"), two.split("test")) is two.split("test")
    both = Dataset("both", one.class_names, "{}", {"train": one.split("train"), "val": two.split("train")})
    joined = unlabelled_images(both, one.split("test"))
    assert joined is not None and len(joined) == 2 * len(one.split("train"))
    assert content(joined)[1] == [*content(one.split("train"))[1], *content(two.split("train"))[1]]


def test_a_file_that_is_replaced_is_another_image(tmp_path):
    """The same list sees it. Files of a format that does not compress differ in their bytes alone."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(picture(1)).save(tmp_path / name / "a.bmp")
    split = data.load("folder", data_dir=tmp_path).split("train")
    before = split.identity
    assert data.load("folder", data_dir=tmp_path).split("train").identity == before == split.identity
    Image.fromarray(picture(3)).save(tmp_path / "cat" / "a.bmp")
    assert split.identity != before


def test_data_that_are_moved_are_the_same_data(tmp_path):
    """The same identity and the same division, from a folder, a table and a list of whole paths."""

    def lists(folder: Path) -> list[Split]:
        paths = sorted(folder.glob("*/*.png"))
        listed = data.from_arrays(paths, [path.parent.name for path in paths])
        datasets = data.load("folder", data_dir=folder), data.load("csv", data_dir=folder / "all.csv"), listed
        return [images for dataset in datasets for images in dataset.splits.values()]

    rows = ["path,label"]
    for number in range(12):
        name = ("cat", "dog")[number % 2]
        write(tmp_path / "here" / name / f"{number}.png", number)
        rows.append(f"{name}/{number}.png,{name}")
    (tmp_path / "here" / "all.csv").write_text("\n".join(rows))
    before = lists(tmp_path / "here")
    facts = [(split.identity, split.keys, split.digest) for split in before]
    (tmp_path / "there").mkdir()
    (tmp_path / "here").rename(tmp_path / "there" / "other")
    after = lists(tmp_path / "there" / "other")
    assert [(split.identity, split.keys) for split in after] == [fact[:2] for fact in facts]
    assert not {split.digest for split in after} & {fact[2] for fact in facts}
    assert facts[0][0] == facts[6][0]  # of the folder and of the list


def lists(*pictures: bytes) -> Split:
    return Split([f"{number}.png" for number in range(len(pictures))], [0] * len(pictures), pictures.__getitem__)


def test_pictures_may_differ_in_their_palettes_alone():
    one, other = (Image.new("P", (4, 4)) for _ in range(2))
    other.putpalette([9, 9, 9])
    assert image_list([one], [0], ["a"]).digest != image_list([other], [0], ["a"]).digest


def test_lists_without_a_source_are_told_apart_by_what_is_read():
    one, other = lists(b"a", b"b"), lists(b"a", b"c")
    assert one.digest != other.digest and one.digest == one.subset([0, 1]).digest
    assert one.identity == lists(b"a", b"b").identity != other.identity
    assert len(one.without(other)) == 2 and len(one.without(one.subset([1]))) == 1
    labelled = dataclasses.replace(one, labels=[0, 1])
    assert labelled.digest != one.digest and labelled.identity != one.identity


def test_rows_of_two_tables_are_two_images():
    train, validation = (from_hub_dataset(table(first, first + 5)).split("train") for first in (0, 5))
    assert train.keys == validation.keys
    assert len(validation.without(train)) == 5 and train.identity != validation.identity
    named = table()
    named._fingerprint = "3f2a"
    first, again = (from_hub_dataset(named).split("train") for _ in range(2))
    assert (first.digest, first.identity) == (again.digest, again.identity)
