"""Datasets from memory, from paths, and from Hugging Face's `datasets`, which a stand-in of its interface plays."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

import clipbias
from clipbias import data
from clipbias.data.dataset import Dataset, Split
from clipbias.data.sources import open_images
from clipbias.data.tables import from_hub_dataset
from clipbias.errors import ClipbiasError
from tests.data.pictures import encoded, picture, write

PIXELS = [picture(seed, 12, 10 + seed) for seed in range(10)]
LABELS = ["cat", "cat", "dog", "dog", "cat", "dog", "cat", "cat", "dog", "dog"]  # each part as a folder lists it


@dataclasses.dataclass
class Image:
    """The type of a column of images."""

    decode: bool = True


@dataclasses.dataclass
class ClassLabel:
    """The type of a column of class numbers."""

    names: list[str]


@dataclasses.dataclass
class Value:
    dtype: str


class Table:
    """As `datasets.Dataset` documents it: `features`, a column by name, a row by number, casts and selections."""

    def __init__(self, columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any]) -> None:
        self.columns = columns
        self.features = dict(features)

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
    assert dataset.class_names == ("cat", "dog") and dataset.name == "own pictures"
    counts = {name: np.bincount(split.labels).tolist() for name, split in dataset.splits.items()}
    assert counts == {"train": [2, 2], "val": [1, 1], "test": [2, 2]}  # 50, 20 and 30 % of 5, rounded as a folder's
    seen = {}
    for split in dataset.splits.values():
        for row, key in enumerate(split.keys):
            seen[key] = (split.image(row), dataset.class_names[split.labels[row]])
    assert len(seen) == 10
    for number, (key, (pixels, label)) in enumerate(sorted(seen.items(), key=lambda item: item[0])):
        expected = picture(7) if key == str(path) else PIXELS[int(key[:6])]
        np.testing.assert_array_equal(pixels, expected, err_msg=str(number))
        assert label == (LABELS[0] if key == str(path) else LABELS[int(key[:6])])
    again = data.from_arrays(mixed, [["cat", "dog"].index(label) for label in LABELS], ["cat", "dog"])
    assert again.split("train").digest == dataset.split("train").digest
    others = [path, Pillow.fromarray(PIXELS[1]), *(pixels[::-1] for pixels in PIXELS[2:])]
    assert {split.digest for split in data.from_arrays(others, LABELS).splits.values()}.isdisjoint(
        split.digest for split in dataset.splits.values()
    )


def test_splits_may_be_given():
    splits = ["train", "test", "train", "train", "validation"] * 2
    dataset = data.from_arrays(
        np.stack([x[:, :10] for x in PIXELS]), LABELS, splits=splits, template="a {}.", name="pets"
    )
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 6, "test": 2, "val": 2}
    np.testing.assert_array_equal(dataset.split("val").image(1), PIXELS[9][:, :10])
    assert dataset.template == "a {}." and dataset.name == "pets"


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
    of_splits = from_hub_dataset({"train": table(0, 6), "validation": table(6, 8), "test": table(8, 10)})
    assert list(of_splits.splits) == ["train", "val", "test"]
    equal(of_splits.split("val"), [6, 7])
    assert len({key for split in of_splits.splits.values() for key in split.keys}) == 10


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


def stream() -> Any:
    class Stream:
        features = FEATURES

        def cast_column(self, column: str, feature: Any) -> "Stream":
            return self

    return Stream()


@pytest.mark.parametrize(
    ("words", "source"),
    [
        ("has no ClassLabel column among text, image, label; cast .*class_encode_column", table(label=Value("int64"))),
        ("has no Image column among text, image, label", table(image=Value("string"))),
        ("has the ClassLabel columns text, label; drop all but one", table(text=ClassLabel(["a"]))),
        ("a stream without a length; load it without streaming=True", stream()),
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
    with pytest.raises(
        ClipbiasError, match="row 2 of the dataset has the label -1, which is no class; leave such rows"
    ):
        open_images(unlabelled)


def test_paths_are_opened(tmp_path):
    for name in ("cat", "dog"):
        for number in range(4):
            write(tmp_path / "pets" / name / f"{number}.png", number)
    (tmp_path / "list.csv").write_text("path,label\npets/cat/0.png,cat\npets/dog/1.png,dog\n")
    for place in (tmp_path / "pets", str(tmp_path / "pets")):
        opened = open_images(place)
        assert isinstance(opened, Dataset) and sum(map(len, opened.splits.values())) == 8
    opened = open_images(str(tmp_path / "list.csv"))
    assert isinstance(opened, Dataset) and opened.class_names == ("cat", "dog")
    opened = open_images("demo/digits")
    assert isinstance(opened, Dataset) and opened.name == "demo/digits"
    assert open_images(pixels := PIXELS[0]) is pixels
    for words, place in (
        ("no dataset and no folder '.*/absent'; check the path", str(tmp_path / "absent")),
        ("no dataset 'eurosta'; did you mean eurosat", "eurosta"),
        ("no demo dataset 'demo/flowers'|no dataset 'demo/flowers'", "demo/flowers"),
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

    def fitted(source: Any, *labels: Any, **options: Any) -> np.ndarray:
        return (
            clipbias.fit(clip, "tip_adapter", source, *labels, progress=False, **options).predict(PIXELS).probabilities
        )

    validation = (PIXELS[4:6], LABELS[4:6])
    model = clipbias.fit(clip, "tip_adapter", PIXELS[:4], LABELS[:4], validation=validation, progress=False)
    expected = model.predict(PIXELS).probabilities
    for source in (memory, tables, str(tmp_path)):
        np.testing.assert_allclose(fitted(source), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(fitted(table(0, 4)), fitted(PIXELS[:4], LABELS[:4]), rtol=1e-3, atol=1e-5)
    accuracy = model.evaluate(PIXELS[6:], LABELS[6:])
    for tested in (memory, table(6, 10), tmp_path):
        evaluated = model.evaluate(tested)
        assert len(evaluated.labels) == 4 and evaluated.accuracy == accuracy.accuracy
