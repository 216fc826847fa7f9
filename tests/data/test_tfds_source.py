"""Prepared TFDS datasets: the benchmark's split by file name, builders' traps, the project's shards and their index."""

import contextlib
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from clipbias import data
from clipbias.data import catalog, tfds
from clipbias.data.tfds import PreparedDataset
from clipbias.errors import ClipbiasError
from clipbias.identity import identity
from tests.data import miniatures
from tests.data.miniatures import assert_same, image, prepare
from tests.data.pictures import write

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def same_picks(dataset, other, shots=2):
    picks = []
    for each in (dataset, other):
        train, val = each.splits["train"], each.splits["val"]
        indices = data.few_shot(train, val, shots=shots, seed=1)
        picks.append([[split.keys[i] for i in places] for split, places in zip((train, val), indices, strict=True)])
    return picks[0] == picks[1]


CARS = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "BMW X6 2012"]
# By dataset, as its stock builder has it: the builder's name, the label and the id of an image (of its path and its
# number), the builder's labels, and which of the benchmark's splits lie in which of its own.
STOCK: dict[str, tuple] = {
    "food101": (  # two labels are exchanged
        *("food101", lambda key, label: key.split("/")[0], lambda key: key.removesuffix(".jpg")),
        *(["apple_pie", "cheesecake", "cheese_plate"], {"train": ["train", "test"], "validation": ["val"]}, "2.1.0"),
    ),
    "caltech101": (  # lower case, and classes that the benchmark lacks
        *("caltech101", lambda key, label: key.split("/")[0].lower(), lambda key: key.split("/")[1]),
        ["accordion", "background_google", "faces", "faces_easy", "leopards"],
        {"train": ["val", "train"], "test": ["test"]},
    ),
    "eurosat": (  # a single split
        *("eurosat", lambda key, label: key.split("/")[0], lambda key: key.split("/")[1]),
        *(["AnnualCrop", "Forest", "SeaLake"], {"train": ["test", "train", "val"]}, "2.0.0"),
    ),
    "stanford_cars": (  # stems repeat between train and test
        *("cars196", lambda key, label: CARS[label], lambda key: key.split("/")[1].removesuffix(".jpg")),
        *(CARS, {"train": ["train", "val"], "test": ["test"]}, "2.1.0"),
    ),
    "sun397": (  # paths begin with a slash
        *("sun397", lambda key, label: "/" + key.rpartition("/")[0], lambda key: "/" + key),
        ["/a/abbey", "/a/apse/indoor", "/y/youth_hostel"],
        *({"train": ["train", "val"], "test": ["test"]}, "4.0.0"),
    ),
    "imagenet": (  # no split file
        *("imagenet2012", lambda key, label: miniatures.WNIDS[label], lambda key: key.rpartition("/")[2]),
        *([*miniatures.WNIDS], {"train": ["train"], "validation": ["val"]}),
    ),
    "imagenet_r": (  # the builder numbers all 1000 classes
        *("imagenet_r", lambda key, label: key.split("/")[0], lambda key: key),
        *(["n00000001", *miniatures.WNIDS], {"test": ["test"]}),
    ),
}


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_builders_images_are_the_benchmarks(tmp_path, name, caplog):
    miniatures.make(tmp_path, name)
    dataset = data.load(name, data_dir=tmp_path)
    source, label_of, id_of, label_names, layout, *version = STOCK[name]
    splits = {stock_name: [] for stock_name in layout}
    for stock_name, parts in layout.items():  # in another order
        for part in parts:
            split = dataset.splits[part]
            for index in reversed(range(len(split))):
                key = split.keys[index]
                splits[stock_name].append((split.read(index), label_of(key, split.labels[index]), id_of(key)))
    entry = catalog.ENTRIES[name]
    builder, _, config = entry.tfds.builder.partition("/")
    options = {"version": version[0]} if version else {}
    prepare(
        *(tmp_path / "tfds", builder, label_names, splits),
        **{"id_feature": entry.tfds.id_feature, "config": config or None, **options},
    )
    imposed = {} if name.startswith("imagenet") else {"split": "coop", "split_dir": tmp_path}
    loaded = data.load(f"tfds/{source}", data_dir=tmp_path / "tfds", **imposed)
    assert_same(loaded, dataset)
    assert name == "imagenet_r" or same_picks(loaded, dataset)
    # Without the benchmark's split, the builder's own classes and splits, divided where they are missing.
    own = data.load(f"tfds/{source}", data_dir=tmp_path / "tfds")
    names = {"food101": tuple(label_names), "caltech101": ("accordion", "face", "leopard")}
    assert own.class_names == names.get(name, dataset.class_names)
    assert ("is not the benchmark's split" in caplog.text) == (not name.startswith("imagenet"))
    if name == "eurosat":
        assert {part: len(split) for part, split in own.splits.items()} == {"train": 15, "val": 6, "test": 9}
        with pytest.raises(ClipbiasError, match=r"no split file .*; say where it is with split_dir"):
            data.load("tfds/eurosat", data_dir=tmp_path / "tfds", split="coop")


def test_missing_records_and_old_versions(tmp_path):
    miniatures.make(tmp_path, "dtd")
    records = [(image(0), "banded", "banded/banded_0001.jpg")]
    names = ["banded", "polka-dotted", "zigzagged"]
    prepare(tmp_path, "dtd", names, {"train": records}, id_feature="file_name")
    with pytest.raises(ClipbiasError, match=r"lacks 30 images of the benchmark's split, such as "):
        data.load("tfds/dtd", data_dir=tmp_path, split="coop")
    miniatures.make(tmp_path, "sun397")
    items = [item for items in miniatures.split_content("sun397").values() for item in items]
    kept = [(image(0), "/a/abbey", f"/{path}") for path, *_ in items[2:]]  # TFDS could not decode two of them
    prepare(tmp_path, "sun397", ["/a/abbey"], {"train": kept}, id_feature="file_name", config="standard-part1-120k")
    loaded = data.load("tfds/sun397", data_dir=tmp_path, split="coop")
    assert loaded.splits["train"].keys == tuple(path for path, *_ in miniatures.split_content("sun397")["train"][2:])
    prepare(tmp_path, "food101", ["a"], {"train": [(image(0), "a", "")]}, id_feature=None, version="2.0.0")
    with pytest.raises(ClipbiasError, match=r"in version 2\.1\.0 or later .* only version 2\.0\.0"):
        data.load("tfds/food101", data_dir=tmp_path, split="coop")


def test_any_builder_and_kept_index(tmp_path):
    records = [(image(n), "ab"[n % 2], "") for n in range(6)]
    options: dict = {"id_feature": None, "config": "small"}
    splits = {"train": records, "test": records[:2]}
    folder = prepare(tmp_path, "own_set", ["a", "b"], splits, version="1.10.0", **options)
    prepare(tmp_path, "own_set", ["c"], {"train": [(image(0), "c", "")]}, version="1.9.0", **options)
    dataset = data.load("tfds/own_set/small", data_dir=tmp_path)  # the newest version
    assert dataset.class_names == ("a", "b") and len(dataset.splits["test"]) == 2
    with np.load(folder / "clipbias_index_train.npz") as index:
        assert sorted(index["labels"].tolist()) == [0, 0, 0, 1, 1, 1]
    assert data.load("tfds/own_set/small", data_dir=tmp_path).splits["train"].keys == dataset.splits["train"].keys


def test_tfrecord_is_explained(tmp_path):
    folder = prepare(tmp_path, "own_set", ["a"], {"train": [(image(0), "a", "")]}, id_feature=None)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ClipbiasError, match=r"stored as tfrecord, which needs tensorflow .* tfds convert_format"):
        data.load("tfds/own_set", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "ucf101", "folder", "csv"])
def test_shards_equal_their_folder(tmp_path, name):
    place = tmp_path / "folders"
    if name in catalog.ENTRIES:
        miniatures.make(place, name)
    files = [write(place / label / f"{number}.png", seed=number) for label in ("cat", "dog") for number in range(9)]
    if name == "csv":
        place /= "a.csv"
        lines = [f"{file.parts[-2]}/{file.name},{file.parts[-2]}" for file in files]
        place.write_text("\n".join(["path,label", *lines]))
    dataset = data.load(name, data_dir=place)
    folder = tfds.build_shards(dataset, tmp_path / "shards")
    again = data.load(name, data_dir=tmp_path / "shards")
    for other in (again, data.load(f"tfds/{folder.parent.name}", data_dir=tmp_path / "shards")):
        assert_same(other, dataset)
        assert {split.upright for split in other.splits.values()} == {name in ("folder", "csv")}
        assert identity(other.splits) == identity(dataset.splits)
    assert again.splits["test"].source == str(folder)
    assert again.class_ids == dataset.class_ids
    assert same_picks(again, dataset)
    if name == "imagenet":
        assert not list(folder.glob("*-test.*"))  # stored once, as val
    with pytest.raises(ClipbiasError, match="exists already"):
        tfds.build_shards(dataset, tmp_path / "shards")


def test_failed_build_leaves_nothing(tmp_path):
    source = miniatures.make(tmp_path, "ucf101")
    dataset = data.load("ucf101", data_dir=tmp_path)
    (source / "UCF-101-midframes" / dataset.splits["test"].keys[-1]).unlink()
    with pytest.raises(ClipbiasError, match="cannot read the image"):
        tfds.build_shards(dataset, tmp_path / "shards")
    assert tfds.find_shards("ucf101", tmp_path / "shards") is None


@contextlib.contextmanager
def no_room_for(size):
    """No file can grow beyond `size` bytes, as on a disk with no more room than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing(built, tmp_path):
    (tmp_path / "own").mkdir()
    for place in ("own", "made"):
        with no_room_for(512), pytest.raises(ClipbiasError, match=r"cannot write shards .*: File too large; choose"):
            tfds.build_shards(built[1], tmp_path / place)
    assert not list((tmp_path / "own").iterdir()) and not (tmp_path / "made").exists()


# The index of records: made with them, or once; believed only where it is theirs.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, data.Dataset]:
    """Shards of a small dataset, and the dataset."""
    root = tmp_path_factory.mktemp("built")
    miniatures.make(root / "folders", "ucf101")
    dataset = data.load("ucf101", data_dir=root / "folders")
    tfds.build_shards(dataset, root / "shards")
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


def index_of(root: Path, split: str = "train") -> Path:
    return root / "ucf101_coop" / "1.0.0" / f"clipbias_index_{split}.npz"


def test_it_is_made_with_the_shards_and_without_one_the_records_are_read_once(built, copied, caplog):
    root, read = copied
    assert_same(data.load("ucf101", data_dir=root), built[1])
    assert read == []
    index_of(root).unlink()
    with caplog.at_level("INFO"):
        assert_same(data.load("ucf101", data_dir=root), built[1])
    assert read == ["train"] and "has no index: all 15 records of train are read, this once" in caplog.text
    assert_same(data.load("ucf101", data_dir=root), built[1])
    assert read == ["train"]
    with np.load(index_of(root)) as made, np.load(index_of(built[0])) as first:
        assert sorted(made) == sorted(first) and all((made[name] == first[name]).all() for name in made)


def test_beside_records_that_cannot_be_written_it_is_in_the_users_cache(built, copied, monkeypatch, caplog):
    root, read = copied
    index_of(root).unlink()
    original = tfds.io.save_arrays

    def refused(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
        if str(path).startswith(str(root)):
            raise ClipbiasError(f"cannot write {path}: Read-only file system.")
        original(path, arrays)

    monkeypatch.setattr(tfds.io, "save_arrays", refused)
    with caplog.at_level("INFO"):
        assert_same(data.load("ucf101", data_dir=root), built[1])
    assert "is not kept here" in caplog.text and "Read-only" in caplog.text
    assert_same(data.load("ucf101", data_dir=root), built[1])
    assert read == ["train"] and not index_of(root).exists()
    changed = next(index_of(root).parent.glob("*-train.array_record*"))
    os.utime(changed, (1, 1))  # other times: perhaps other records
    assert_same(data.load("ucf101", data_dir=root), built[1])
    assert read == ["train", "train"]


@pytest.mark.parametrize("damage", ["cut", "of", "labels", "ids"])
def test_one_that_is_damaged_or_anothers_is_made_again(built, copied, damage):
    root, read = copied
    index = index_of(root)
    content = index.read_bytes()
    with np.load(index) as stored:
        arrays = dict(stored)
    if damage == "cut":
        index.write_bytes(content[:-40])
    else:
        wrong = {"of": np.array("other"), "labels": arrays["labels"][1:], "ids": arrays["ids"][1:]}
        np.savez(index, **arrays | {damage: wrong[damage]})
    assert_same(data.load("ucf101", data_dir=root), built[1])
    assert read == ["train"]


def test_a_split_of_several_files(built, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "FILE_BYTES", 2 * len(built[1].splits["train"].read(0)))
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 0)  # none is asked to shuffle
    tfds.build_shards(built[1], tmp_path)
    files = list(index_of(tmp_path).parent.glob("*-train.array_record*"))
    assert 3 <= len(files) < len(built[1].splits["train"])
    assert copied[1] == list(built[1].splits)
    assert_same(data.load("ucf101", data_dir=tmp_path), built[1])
    assert len(copied[1]) == 3
