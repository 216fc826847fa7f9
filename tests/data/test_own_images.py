"""A user's own pictures: on disk, in Python's hands, and in Hugging Face's `datasets`, which a stand-in plays."""

import contextlib
import dataclasses
import io
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
import pillow_heif
import pytest
from PIL import Image as Pillow
from scipy.stats import binomtest

import clipbias
from clipbias import TunedModel, data
from clipbias.clip import Clip
from clipbias.data import transforms
from clipbias.data.dataset import Dataset, Split
from clipbias.data.folder import from_hub_dataset
from clipbias.data.images import ImageCache, Images
from clipbias.data.sources import cautions_of_classes, open_images
from clipbias.data.user_images import UserImages, image_list
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.tuning import Task
from experiments.inputs import find_images
from tests.data.pictures import encoded, picture, write

# Pictures turned upright, in formats of phones, cut off.

UPRIGHT = picture(3, 6, 9)
ORIENTATION = 0x0112
# How the stored pixels come of the upright ones, by the EXIF standard's numbers: where row 0 and column 0 are shown.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: UPRIGHT.swapaxes(0, 1)[::-1],
    7: UPRIGHT.swapaxes(0, 1)[::-1, ::-1],
    8: UPRIGHT.swapaxes(0, 1)[:, ::-1],
}


def turned(orientation: int, exif: bytes | None = None) -> bytes:
    """A file whose EXIF orientation shows `UPRIGHT`."""
    if exif is None:
        tags = Pillow.Exif()
        tags[ORIENTATION] = orientation
        exif = tags.tobytes()
    buffer = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(STORED[orientation])).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", list(STORED))
def test_own_pictures_are_upright_and_those_of_the_benchmark_as_stored(orientation, tmp_path):
    path = tmp_path / "cat" / "a.png"
    path.parent.mkdir()
    path.write_bytes(turned(orientation))
    (tmp_path / "list.csv").write_text("path,label\ncat/a.png,cat\n")
    folder = data.load("folder", data_dir=tmp_path).split("train")
    for split in (
        folder,
        folder.subset([0]),
        data.load("csv", data_dir=tmp_path / "list.csv").split("train"),
        image_list([path], ["cat"], ["cat"]),
        image_list([Pillow.open(path)], ["cat"], ["cat"]),
    ):
        np.testing.assert_array_equal(split.image(0), UPRIGHT)
    for cache_bytes in (0, 500, 5000):  # decoded each time, kept as a file, kept as pixels
        images = Images(folder, ImageCache(cache_bytes, 1))
        for _ in range(2):
            np.testing.assert_array_equal(np.asarray(images.decoded(0)), UPRIGHT)
    for image in (path, Pillow.open(path)):
        np.testing.assert_array_equal(UserImages([image]).decoded(0), UPRIGHT)
    np.testing.assert_array_equal(
        Split(("a",), np.zeros(1, int), lambda _: path.read_bytes()).image(0), STORED[orientation]
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"garbage", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\5\0"])
def test_damaged_exif_data_cost_no_picture(exif, tmp_path):
    (tmp_path / "a.png").write_bytes(turned(1, b"Exif\0\0" + exif))
    np.testing.assert_array_equal(UserImages([tmp_path / "a.png"]).decoded(0), UPRIGHT)


def test_pictures_in_formats_that_are_not_read_are_counted_and_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(transforms, "is_installed", lambda: False)
    for number in range(4):
        write(tmp_path / "cat" / f"{number}.jpg", number)
        write(tmp_path / "dog" / f"{number}.jpg", number)
    for name in ("cat/a.HEIC", "cat/b.heic", "dog/c.heif", "dog/d.dng", "dog/notes.txt"):
        (tmp_path / name).write_bytes(b"?")
    assert sum(map(len, data.load("folder", data_dir=tmp_path).splits.values())) == 8
    assert caplog.text.count("pictures are left out") == 1
    assert re.search(r"4 pictures are left out.*: 2 \.heic, 1 \.heif, 1 \.dng; pip install", caplog.text)
    caplog.clear()
    assert len(find_images(str(tmp_path))) == 8 and "4 pictures are left out" in caplog.text
    for path in (tmp_path / "cat").glob("*.jpg"):
        path.unlink()
    with pytest.raises(ClipbiasError, match=r"has no image that is read \(2 \.heic; pip install 'clipbias\[heif\]'"):
        data.load("folder", data_dir=tmp_path)
    with pytest.raises(ClipbiasError, match=r"holds no image \(.*\); it holds 2 \.heic; pip install"):
        find_images(str(tmp_path / "cat"))


def test_heic_is_read(tmp_path):
    smooth = np.asarray(Pillow.fromarray(UPRIGHT).resize((90, 60), Pillow.Resampling.BICUBIC))
    pillow_heif.from_pillow(Pillow.fromarray(smooth)).save(tmp_path / "a.heic", quality=95)
    assert find_images(str(tmp_path)) == [tmp_path / "a.heic"]
    values = np.asarray(UserImages([tmp_path / "a.heic"]).decoded(0)).astype(int)
    assert values.shape == smooth.shape and np.abs(values - smooth).mean() < 6


@pytest.fixture(scope="module")
def zero_shot(clip: Clip) -> TunedModel:
    return TunedModel(Task(clip, "zero_shot", ("cat", "dog")), {})


@pytest.mark.ci
def test_a_picture_that_is_cut_off_has_a_line_of_its_own(zero_shot, tmp_path):
    files = [write(tmp_path / f"{number}.jpg", number) for number in range(5)]
    files[1].write_bytes(files[1].read_bytes()[:-200])
    lazy = Pillow.open(io.BytesIO(files[1].read_bytes()))  # Pillow finds out when it needs the pixels
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        zero_shot.predict(files)
    result = zero_shot.predict([*files, lazy], batch_size=2, on_image_error="skip")
    assert list(result.errors) == [1, 5] and np.isnan(result.probabilities[[1, 5]]).all()
    assert result.labels[[1, 5]].tolist() == [-1, -1] and result.classes[1] is None
    assert "1.jpg cannot be decoded" in repr(result).split("\n")[1]
    labels = ["cat", "dog", "dog", "cat", "dog"]
    accuracy = zero_shot.evaluate(files, labels, on_image_error="skip")
    assert accuracy.images == 4 == accuracy.confusion.sum() and "; 1 could not be read" in repr(accuracy)
    right = [result.classes[row] == labels[row] for row in (0, 2, 3, 4)]
    assert accuracy.accuracy == 25 * sum(right)
    low, high = binomtest(sum(right), 4).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(accuracy.interval, (100 * low, 100 * high), atol=1e-9)


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:there are no validation images")
def test_training_leaves_out_what_cannot_be_read(clip, tmp_path):
    files = [write(tmp_path / f"{number}.jpg", number) for number in range(4)]
    files[3].write_bytes(b"")
    labels = ["cat", "cat", "dog", "dog"]
    with pytest.raises(UnreadableImage, match=r"3\.jpg is empty"):
        clipbias.fit(clip, "gda", files, labels, progress=False)
    model = clipbias.fit(clip, "gda", files, labels, on_image_error="skip", progress=False)
    whole = clipbias.fit(clip, "gda", files[:3], labels[:3], progress=False)
    shares = [each.predict(files[:3]).probabilities for each in (model, whole)]
    np.testing.assert_allclose(*shares, rtol=1e-4)


# Datasets from memory, from paths, and from Hugging Face's `datasets`.

PIXELS = [picture(seed, 12, 10 + seed) for seed in range(10)]
LABELS = ["cat", "cat", "dog", "dog", "cat", "dog", "cat", "cat", "dog", "dog"]  # each part as a folder lists it


# The types of columns of images, of class numbers, and of anything else.
Image = dataclasses.make_dataclass("Image", [("decode", bool, True)])
ClassLabel = dataclasses.make_dataclass("ClassLabel", ["names"])
Value = dataclasses.make_dataclass("Value", ["dtype"])


class Table:
    """As `datasets.Dataset` documents it: `features`, a column by name, a row by number, casts and selections."""

    def __init__(self, columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any]) -> None:
        self.columns = columns
        self.features = dict(features)
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def _value(self, name: str, row: int) -> Any:
        value = self.columns[name][row]
        feature = self.features[name]
        if isinstance(feature, Image) and feature.decode:
            assert value["bytes"] is not None
            return Pillow.open(io.BytesIO(value["bytes"]))
        return value

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return [self._value(key, row) for row in range(len(self))]
        assert type(key) is int  # NumPy's numbers are refused by some versions
        return {name: self._value(name, key) for name in self.features}

    def cast_column(self, column: str, feature: Any) -> "Table":
        return Table(self.columns, {**self.features, column: feature})

    def select_columns(self, column_names: list[str]) -> "Table":
        return Table(self.columns, {name: self.features[name] for name in column_names})


FEATURES = {"text": Value("string"), "image": Image(), "label": ClassLabel(["cat", "dog"])}


def table(first: int = 0, last: int = 10, **features: Any) -> Table:
    columns = {
        "text": ["a"] * (last - first),
        "image": [{"bytes": encoded(pixels), "path": None} for pixels in PIXELS[first:last]],
        "label": [FEATURES["label"].names.index(label) for label in LABELS[first:last]],
    }
    return Table(columns, {**FEATURES, **features})


def test_a_dataset_from_memory_is_divided_as_a_folder_is(tmp_path):
    path = write(tmp_path / "a.png", 7)
    mixed = [path, Pillow.fromarray(PIXELS[1]), *PIXELS[2:]]
    dataset = data.from_arrays(mixed, LABELS)
    counts = {name: np.bincount(split.labels).tolist() for name, split in dataset.splits.items()}
    assert counts == {"train": [2, 2], "val": [1, 1], "test": [2, 2]}  # 50, 20 and 30 % of 5, rounded as a folder's
    seen = {}
    for split in dataset.splits.values():
        for row, key in enumerate(split.keys):
            seen[0 if key == path.name else int(key[:6])] = split.image(row), dataset.class_names[split.labels[row]]
    for number, label in enumerate(LABELS):
        np.testing.assert_array_equal(seen[number][0], PIXELS[number] if number else picture(7))
        assert seen[number][1] == label
    again = data.from_arrays(mixed, [["cat", "dog"].index(label) for label in LABELS], ["cat", "dog"])
    assert again.split("train").digest == dataset.split("train").digest


@pytest.mark.parametrize(
    "column", [pandas.Categorical, iter, lambda values: pandas.Series(values, index=range(len(values), 0, -1))]
)
def test_paths_and_labels_may_be_columns(column, tmp_path):
    paths = [str(write(tmp_path / f"{number}.png", number)) for number in range(3)]
    split = image_list(column(paths), column(["dog", "cat", "dog"]), ("cat", "dog"))
    assert split.keys == ("0.png", "1.png", "2.png") and split.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(split.image(2), picture(2))
    assert image_list(column(paths), column([1, 0, 1]), ("cat", "dog")).identity == split.identity


def test_a_list_keeps_the_folder_that_it_was_given_in(tmp_path):
    write(tmp_path / "a.png", 9)
    with contextlib.chdir(tmp_path):
        split = image_list(["a.png"])
    np.testing.assert_array_equal(split.image(0), picture(9))


def test_splits_may_be_given():
    splits = ["train", "test", "train", "train", "validation"] * 2
    dataset = data.from_arrays(PIXELS, LABELS, splits=splits, template="a {}.", name="pets")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 6, "test": 2, "val": 2}
    np.testing.assert_array_equal(dataset.split("val").image(1), PIXELS[9])
    assert dataset.template == "a {}." and dataset.name == "pets"
    # There are no others: no image of the given ones is moved, or tested twice.
    for given in (["train"] * 10, ["train"] * 6 + ["test"] * 4, ["train"] * 6 + ["val"] * 4):
        splits_of = data.from_arrays(PIXELS, LABELS, splits=given).splits
        assert {name: len(split) for name, split in splits_of.items()} == Counter(given)


def equal(split: Split, numbers: Sequence[int]) -> None:
    """These pictures with their labels."""
    names = ("cat", "dog")
    assert [names[label] for label in split.labels] == [LABELS[number] for number in numbers]
    for row, number in enumerate(numbers):
        np.testing.assert_array_equal(split.image(row), PIXELS[number])


def test_tables_of_hugging_face():
    dataset = from_hub_dataset(table())
    assert dataset.class_names == ("cat", "dog")
    equal(dataset.split("train"), range(10))
    equal(dataset.split("test").subset([3, 4]), [3, 4])
    tables = {"train": table(0, 6), "validation": table(6, 8), "test": table(8, 10)}
    for name, of_split in tables.items():
        of_split._fingerprint = name  # as all that the library makes
    of_splits = from_hub_dataset(tables)
    assert list(of_splits.splits) == ["train", "val", "test"]
    equal(of_splits.split("val"), [6, 7])
    assert cautions_of_classes(of_splits) == []
    assert len({key for split in of_splits.splits.values() for key in split.keys}) == 10


def test_validation_images_that_train_are_said(tmp_path):
    """The same file, and a copy of it."""
    paths = [write(tmp_path / f"{number}.png", number) for number in range(4)]
    copy = shutil.copy(paths[0], tmp_path / "copy.png")

    def said(validation: list[Any]) -> list[str]:
        lists = {"train": paths[:2], "val": validation}
        splits = {name: image_list(images, [0, 1], ("cat", "dog")) for name, images in lists.items()}
        return cautions_of_classes(Dataset("own", ("cat", "dog"), "a {}.", splits))

    for shared in (paths[0], copy):
        assert said([shared, paths[3]])[0].startswith(f"validation images train, too, as {shared} does;")
    assert said(paths[2:]) == []


def test_an_image_of_hugging_face_may_lie_in_a_file(tmp_path):
    files = table()
    path = tmp_path / "x.png"
    path.write_bytes(encoded(PIXELS[3]))
    files.columns["image"][3].update(bytes=None, path=str(path))
    files.columns["image"][4] = None
    split = from_hub_dataset(files).split("train")
    np.testing.assert_array_equal(split.image(3), PIXELS[3])
    with pytest.raises(ClipbiasError, match=r"row 4 of the dataset has no image; .*on_image_error=skip"):
        split.image(4)


class Stream:
    features = FEATURES
    cast_column = None


@pytest.mark.parametrize(
    ("words", "source"),
    [
        ("has no ClassLabel column among text, image, label; cast .*class_encode_column", table(label=Value("int64"))),
        ("has no Image column among text, image, label", table(image=Value("string"))),
        ("has the ClassLabel columns text, label; drop all but one", table(text=ClassLabel(["a"]))),
        ("a stream without a length; load it without streaming=True", Stream()),
        ("has a split 'extra'; name it train, validation or test", {"train": table(), "extra": table()}),
        ("different classes", {"train": table(), "test": table(label=ClassLabel(["dog", "cat"]))}),
    ],
)
def test_tables_that_cannot_be_used(words, source):
    with pytest.raises(ClipbiasError, match=words):
        open_images(source)


def test_rows_without_a_label_are_named():
    unlabelled = table()
    unlabelled.columns["label"][2] = -1
    with pytest.raises(ClipbiasError, match="2 of the dataset has the label -1, which is no class; leave such rows"):
        open_images(unlabelled)


def test_paths_are_opened(tmp_path):
    for name in ("cat", "dog"):
        for number in range(4):
            write(tmp_path / "pets" / name / f"{number}.png", number)
    (tmp_path / "list.csv").write_text("path,label\npets/cat/0.png,cat\npets/dog/1.png,dog\n")
    for place, images in ((tmp_path / "pets", 8), (str(tmp_path / "list.csv"), 2), ("demo/fashion", 10 * 172)):
        opened = open_images(place)
        assert isinstance(opened, Dataset) and sum(map(len, opened.splits.values())) == images
    assert open_images(pixels := PIXELS[0]) is pixels
    for words, place in (
        ("no dataset and no folder '.*/absent'; check the path", str(tmp_path / "absent")),
        ("no dataset 'eurosta'; did you mean eurosat", "eurosta"),
    ):
        with pytest.raises(ClipbiasError, match=words):
            open_images(place)


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:(the tuned model|there are no validation images)")
def test_fit_and_evaluate_take_them_as_they_are(clip, tmp_path):
    """The numbers are those of pictures with labels beside them."""
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 4
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        place = tmp_path / splits[number] / label / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(pixels))
    memory = data.from_arrays(PIXELS, LABELS, splits=splits)
    tables = {"train": table(0, 4), "validation": table(4, 6), "test": table(6, 10)}
    validation = (PIXELS[4:6], LABELS[4:6])
    model = clipbias.fit(clip, "tip_adapter", PIXELS[:4], LABELS[:4], validation=validation, progress=False)
    expected = model.predict(PIXELS).probabilities
    accuracy = model.evaluate(PIXELS[6:], LABELS[6:])
    for source in (memory, tables, str(tmp_path)):
        other = clipbias.fit(clip, "tip_adapter", source, progress=False)
        np.testing.assert_allclose(other.predict(PIXELS).probabilities, expected, rtol=1e-3, atol=1e-5)
        evaluated = model.evaluate(table(6, 10) if source is tables else source)
        assert len(evaluated.labels) == 4 and evaluated.accuracy == accuracy.accuracy
