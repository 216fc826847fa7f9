"""What an image list is: lists that differ are never taken for each other, and the same list is itself."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipbias import data
from clipbias.data import Split
from clipbias.data.dataset import Dataset
from clipbias.data.held_out import unlabelled_images
from clipbias.data.images import ImageCache, Images
from clipbias.data.protocols import validation_outside_test
from clipbias.data.tables import from_hub_dataset
from clipbias.data.user_images import labelled_split
from tests.data.pictures import picture, write
from tests.data.test_user_datasets import table

# A list: the root of its files, the number of each picture, and its label. A picture's name is its number, below 3.
LISTS = st.tuples(
    st.sampled_from(["one", "two"]),
    st.lists(st.integers(0, 2), unique=True, max_size=3),
    st.integers(0, 1),
    st.booleans(),
)
Drawn = tuple[str, list[int], int, bool]


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


def of_files(top: Path, drawn: Drawn) -> Split:
    root, numbers, label, _ = drawn
    return labelled_split([top / root / "cat" / f"{n}.bmp" for n in numbers], [label] * len(numbers), ("a", "b"))


def of_memory(top: Path, drawn: Drawn) -> Split:
    """The same pictures in memory, as PIL images or as arrays."""
    root, numbers, label, is_array = drawn
    images: list = [Image.open(top / root / "cat" / f"{number}.bmp") for number in numbers]
    if is_array:
        images = [np.asarray(image) for image in images]
    return labelled_split(images, [label] * len(numbers), ("a", "b"))


def content(split: Split) -> list[object]:
    return [split.labels.tolist(), [split.image(index).tobytes() for index in range(len(split))]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(first=LISTS, second=LISTS, in_memory=st.booleans())
def test_digests_are_equal_where_the_lists_are(roots, first, second, in_memory):
    make = of_memory if in_memory else of_files
    if not (first[1] and second[1]):
        return
    one, two = make(roots, first), make(roots, second)
    same_kind = not in_memory or first[3] == second[3]  # a picture of PIL and its array may be two
    for digest in ("digest", "stored_digest"):
        if content(one) != content(two):
            assert getattr(one, digest) != getattr(two, digest)
        elif same_kind:
            assert getattr(one, digest) == getattr(two, digest)
    whole = make(roots, (first[0], [0, 1, 2], 0, first[3]))
    assert whole.subset([2, 0]).digest != whole.subset([0, 2]).digest == whole.subset([0, 1, 2]).subset([0, 2]).digest


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(first=LISTS, second=LISTS)
def test_images_are_told_apart_by_their_files(roots, first, second):
    """What one list has and another has not, and what a cache that both share gives for each."""
    if not (first[1] and second[1]):
        return
    one, two = of_files(roots, first), of_files(roots, second)
    rest = [number for number in first[1] if first[0] != second[0] or number not in second[1]]
    assert [os.path.basename(key) for key in one.without(two).keys] == [f"{number}.bmp" for number in rest]
    cache = ImageCache(1 << 20)
    for split in (one, two, one):
        images = Images(split, cache)
        for index in range(len(split)):
            np.testing.assert_array_equal(images.decoded(index), split.image(index))


def test_folders_of_equal_names(roots):
    one, two, link = (data.load("folder", data_dir=roots / name) for name in ("one", "two", "link"))
    for split in ("train", "val", "test"):
        assert one.split(split).keys == two.split(split).keys
        assert one.split(split).digest != two.split(split).digest
        assert one.split(split).stored_digest != two.split(split).stored_digest
        assert one.split(split).stored_digest == link.split(split).stored_digest
    # The validation images of one folder are no test images of the other, and both are trained on without labels.
    assert validation_outside_test(one.split("test"), two.split("test")) is two.split("test")
    both = Dataset("both", one.class_names, "{}", {"train": one.split("train"), "val": two.split("train")})
    joined = unlabelled_images(both, one.split("test"))
    assert joined is not None and len(joined) == 2 * len(one.split("train"))
    assert content(joined)[1] == [*content(one.split("train"))[1], *content(two.split("train"))[1]]


def test_a_file_that_is_replaced_is_another_image(tmp_path):
    write(tmp_path / "cat" / "a.png", 1)
    write(tmp_path / "dog" / "a.png", 2)
    before = data.load("folder", data_dir=tmp_path).split("train").stored_digest
    assert data.load("folder", data_dir=tmp_path).split("train").stored_digest == before
    write(tmp_path / "cat" / "a.png", 3, height=40)
    assert data.load("folder", data_dir=tmp_path).split("train").stored_digest != before


def test_the_sets_of_the_demo_differ():
    names = ("demo/emoji", "demo/emoji_outlined", "demo/emoji_glossy", "demo/emoji_black")
    splits = [data.load(name).split("test") for name in names]
    assert len({split.keys for split in splits}) == 1
    for digest in ("digest", "stored_digest"):
        assert len({getattr(split, digest) for split in splits}) == len(names)
        assert getattr(data.load(names[0]).split("test"), digest) == getattr(splits[0], digest)


def lists(*pictures: bytes) -> Split:
    return Split([f"{number}.png" for number in range(len(pictures))], [0] * len(pictures), pictures.__getitem__)


def test_lists_without_a_source_are_told_apart_by_what_is_read():
    one, other = lists(b"a", b"b"), lists(b"a", b"c")
    assert one.digest != other.digest and one.digest == one.subset([0, 1]).digest
    assert one.stored_digest == lists(b"a", b"b").stored_digest != other.stored_digest
    assert len(one.without(other)) == 2 and len(one.without(one.subset([1]))) == 1
    labelled = dataclasses.replace(one, labels=[0, 1])
    assert labelled.digest != one.digest and labelled.stored_digest != one.stored_digest


def test_rows_of_two_tables_are_two_images():
    train, validation = (from_hub_dataset(table(first, first + 5)).split("train") for first in (0, 5))
    assert train.keys == validation.keys
    assert len(validation.without(train)) == 5 and train.stored_digest != validation.stored_digest
    named = table()
    named._fingerprint = "3f2a"
    again = from_hub_dataset(named).split("train")
    assert again.digest == from_hub_dataset(named).split("train").digest
    assert again.stored_digest == from_hub_dataset(named).split("train").stored_digest
