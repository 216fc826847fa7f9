"""The index of records: made with them, or once; believed only where it is theirs."""

import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from clipbias import data
from clipbias.data import shards, tfds
from clipbias.data.tfds import PreparedDataset
from clipbias.errors import ClipbiasError
from tests.data import miniatures

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, data.Dataset]:
    """Shards of a small dataset, and the dataset."""
    root = tmp_path_factory.mktemp("built")
    miniatures.make(root / "folders", "ucf101")
    dataset = data.load("ucf101", data_dir=root / "folders")
    shards.build(dataset, root / "shards")
    return root / "shards", dataset


@pytest.fixture
def copied(built: tuple[Path, data.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A copy of the shards' folder, and which of its splits are read whole."""
    shutil.copytree(built[0], tmp_path / "shards")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read = []
    original = PreparedDataset._read_index

    def noted(self: PreparedDataset, split: str, id_feature: str | None) -> tfds.RecordIndex:
        read.append(split)
        return original(self, split, id_feature)

    monkeypatch.setattr(PreparedDataset, "_read_index", noted)
    return tmp_path / "shards", read


def place(root: Path, split: str = "train") -> Path:
    return root / "ucf101_coop" / "1.0.0" / f"clipbias_index_{split}.npz"


def assert_opens(root: Path, dataset: data.Dataset) -> None:
    loaded = data.load("ucf101", data_dir=root)
    for name, split in dataset.splits.items():
        twin = loaded.splits[name]
        assert twin.keys == split.keys and (twin.labels == split.labels).all()
        assert [twin.read(index) for index in range(len(twin))] == [split.read(index) for index in range(len(split))]


def test_it_is_made_with_the_shards_and_belongs_to_a_copy(built, copied) -> None:
    root, read = copied
    assert_opens(root, built[1])
    assert read == []


def test_without_one_the_records_are_read_once(built, copied, caplog) -> None:
    root, read = copied
    place(root).unlink()
    with caplog.at_level("INFO"):
        assert_opens(root, built[1])
    assert read == ["train"] and "has no index: all 15 records of train are read, this once" in caplog.text
    assert_opens(root, built[1])
    assert read == ["train"]
    with np.load(place(root)) as made, np.load(place(built[0])) as first:
        assert sorted(made) == sorted(first) and all((made[name] == first[name]).all() for name in made)


def test_beside_records_that_cannot_be_written_it_is_in_the_users_cache(built, copied, monkeypatch, caplog) -> None:
    root, read = copied
    place(root).unlink()
    original = tfds.atomic_path

    def refused(path: epath.Path) -> AbstractContextManager[Path]:
        if str(path).startswith(str(root)):
            raise ClipbiasError(f"cannot write {path}: Read-only file system.")
        return original(path)

    monkeypatch.setattr(tfds, "atomic_path", refused)
    with caplog.at_level("INFO"):
        assert_opens(root, built[1])
    assert "is not kept here" in caplog.text and "Read-only" in caplog.text
    assert_opens(root, built[1])
    assert read == ["train"] and not place(root).exists()
    changed = next(place(root).parent.glob("*-train.array_record*"))
    os.utime(changed, (1, 1))  # other times: perhaps other records
    assert_opens(root, built[1])
    assert read == ["train", "train"]


@pytest.mark.parametrize("damage", ["cut", "of", "labels", "ids"])
def test_one_that_is_damaged_or_anothers_is_made_again(built, copied, damage) -> None:
    root, read = copied
    index = place(root)
    content = index.read_bytes()
    with np.load(index) as stored:
        arrays = dict(stored)
    if damage == "cut":
        index.write_bytes(content[:-40])
    else:
        wrong = {"of": np.array("other"), "labels": arrays["labels"][1:], "ids": arrays["ids"][1:]}
        np.savez(index, **arrays | {damage: wrong[damage]})
    assert_opens(root, built[1])
    assert read == ["train"]


def test_a_split_of_several_files(built, copied, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "FILE_BYTES", 2 * len(built[1].splits["train"].read(0)))
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 0)  # none is asked to shuffle
    shards.build(built[1], tmp_path)
    files = list(place(tmp_path).parent.glob("*-train.array_record*"))
    assert 3 <= len(files) < len(built[1].splits["train"])
    assert copied[1] == list(built[1].splits)
    assert_opens(tmp_path, built[1])
    assert len(copied[1]) == 3
