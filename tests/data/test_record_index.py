"""The index of records: made with them, or once; believed only where it is theirs."""

import fcntl
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from clipbias.data.contents import contents

from clipbias import data
from clipbias.data import inspection, record_index, shards
from clipbias.data.dataset import Split
from clipbias.data.tfds_records import Prepared
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
    read, original = [], Prepared._read_index

    def noted(self: Prepared, split: str, id_feature: str | None) -> record_index.Index:
        read.append(split)
        return original(self, split, id_feature)

    monkeypatch.setattr(Prepared, "_read_index", noted)
    return tmp_path / "shards", read


def place(root: Path, split: str = "train") -> Path:
    return root / "ucf101_coop" / "1.0.0" / f"clipbias_index_{split}.npz"


def assert_opens(root: Path, dataset: data.Dataset) -> None:
    found = data.load("ucf101", data_dir=root)
    for name, split in dataset.splits.items():
        own = found.splits[name]
        assert own.keys == split.keys and (own.labels == split.labels).all()
        assert [own.read(index) for index in range(len(own))] == [split.read(index) for index in range(len(split))]


def test_it_is_made_with_the_shards_and_belongs_to_a_copy(built, copied) -> None:
    root, read = copied
    assert_opens(root, built[1])
    assert read == []


def test_records_of_the_same_number_in_two_splits_are_told_apart(built, copied, monkeypatch) -> None:
    monkeypatch.setattr(inspection, "SETTLED_SECONDS", -1e6)
    for _ in range(2):  # the second time from what is kept
        found = data.load("ucf101", data_dir=copied[0])
        for name, split in built[1].splits.items():
            plain = Split(split.keys, split.labels, split.read)
            assert contents(found.splits[name]) == contents(plain)


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
    original = record_index._write

    def refused(path: Path, *rest: object) -> None:
        if path.is_relative_to(root):
            raise ClipbiasError(f"cannot write {path}: Read-only file system.")
        original(path, *rest)

    monkeypatch.setattr(record_index, "_write", refused)
    with caplog.at_level("INFO"):
        assert_opens(root, built[1])
    assert "is kept in" in caplog.text and "Read-only" in caplog.text
    assert_opens(root, built[1])
    assert read == ["train"] and not place(root).exists()
    changed = next(place(root).parent.glob("*-train.array_record*"))
    changed.write_bytes(changed.read_bytes())  # other times: perhaps other records
    assert_opens(root, built[1])
    assert read == ["train", "train"]


@pytest.mark.parametrize("damage", ["cut", "other", "kinds", "count", "letters", "lengths", "text"])
def test_one_that_is_damaged_or_anothers_is_made_again(built, copied, damage) -> None:
    root, read = copied
    own = place(root)
    content = own.read_bytes()
    with np.load(own) as stored:
        arrays = dict(stored)
    if damage == "cut":
        own.write_bytes(content[:-40])
    elif damage == "text":
        own.write_text("{}")
    else:
        arrays |= {
            "other": {"of": arrays["of"][::-1]},
            "kinds": {"labels": arrays["labels"].astype(np.int64)},
            "count": {"positions": arrays["positions"][:-1]},
            "letters": {"names": np.full_like(arrays["names"], 0xFF)},
            "lengths": {"lengths": arrays["lengths"] - 1},
        }[damage]
        np.savez(own, **arrays)
    assert_opens(root, built[1])
    assert read == ["train"]


def test_one_of_the_first_versions_is_taken_over(built, copied) -> None:
    root, read = copied
    split = built[1].splits["train"]
    with np.load(place(root)) as stored:
        order = stored["positions"].tolist()
    place(root).unlink()
    values = {"id_feature": "key", "ids": [split.keys[i] for i in order], "positions": order}
    values["labels"] = split.labels[order].tolist()
    place(root).with_suffix(".json").write_text(json.dumps(values))
    assert_opens(root, built[1])
    assert read == [] and place(root).exists()
    place(root).unlink()
    place(root).with_suffix(".json").write_text(json.dumps(values | {"labels": values["labels"][1:]}))
    assert_opens(root, built[1])
    assert read == ["train"]


def test_what_the_maker_says_is_not_believed_where_records_say_otherwise(built, copied, tmp_path, monkeypatch) -> None:
    original = shards._examples
    monkeypatch.setattr(shards, "_examples", lambda split, part: original(split, part[::-1]))
    shards.build(built[1], tmp_path)
    assert copied[1] == list(built[1].splits)
    assert_opens(tmp_path, built[1])


def test_a_split_of_several_files(built, copied, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shards, "FILE_BYTES", 2 * len(built[1].splits["train"].read(0)))
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 0)  # none is asked to shuffle
    shards.build(built[1], tmp_path)
    files = list(place(tmp_path).parent.glob("*-train.array_record*"))
    assert 3 <= len(files) < len(built[1].splits["train"])
    assert copied[1] == []
    assert_opens(tmp_path, built[1])


def test_of_processes_that_want_one_at_once_one_makes_it(built, copied) -> None:
    root, read = copied
    kept = place(root).read_bytes()
    place(root).unlink()
    ended = threading.Event()

    def other() -> None:
        assert_opens(root, built[1])
        ended.set()

    with open(place(root).with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        assert not ended.wait(0.5)
        place(root).write_bytes(kept)
    assert ended.wait(20) and read == []
    thread.join()
    assert not place(root).with_suffix(".lock").exists()
