"""Prepared TFDS datasets: the benchmark's split imposed by file name, the builders' traps, the project's shards."""

import contextlib
import resource
import subprocess
import sys

import numpy as np
import pytest

from clipbias import data
from clipbias.data import catalog, shards
from clipbias.errors import ClipbiasError
from tests.data import miniatures
from tests.data.stock_builders import image, prepare

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def same_picks(dataset, other, shots=2):
    picks = []
    for each in (dataset, other):
        train, val = each.splits["train"], each.splits["val"]
        indices = data.few_shot(train, val, shots=shots, seed=1)
        picks.append([[split.keys[i] for i in places] for split, places in zip((train, val), indices, strict=True)])
    return picks[0] == picks[1]


def assert_equal(dataset, other):
    assert dataset.class_names == other.class_names and dataset.template == other.template
    assert dataset.splits.keys() == other.splits.keys()
    for name, split in dataset.splits.items():
        assert split.keys == other.splits[name].keys
        np.testing.assert_array_equal(split.labels, other.splits[name].labels)
        assert [split.read(i) for i in range(len(split))] == [other.splits[name].read(i) for i in range(len(split))]


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
    assert_equal(loaded, dataset)
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
    prepare(tmp_path, "food101", ["a"], {"train": [(image(0), "a", "")]}, id_feature=None, version="2.0.0")
    with pytest.raises(ClipbiasError, match=r"in version 2\.1\.0 or later .* only version 2\.0\.0"):
        data.load("tfds/food101", data_dir=tmp_path, split="coop")


def test_any_builder_and_kept_index(tmp_path):
    records = [(image(n), "ab"[n % 2], "") for n in range(6)]
    folder = prepare(
        tmp_path, "own_set", ["a", "b"], {"train": records, "test": records[:2]}, id_feature=None, config="small"
    )
    dataset = data.load("tfds/own_set/small", data_dir=tmp_path)
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


@pytest.mark.parametrize("name", ["imagenet", "ucf101"])
def test_shards_equal_their_folder(tmp_path, name):
    miniatures.make(tmp_path / "folders", name)
    dataset = data.load(name, data_dir=tmp_path / "folders")
    folder = shards.build(dataset, tmp_path / "shards")
    again = data.load(name, data_dir=tmp_path / "shards")
    assert_equal(again, dataset)
    assert again.class_ids == dataset.class_ids
    assert same_picks(again, dataset)
    if name == "imagenet":
        assert not list(folder.glob("*-test.*"))  # stored once, as val
    with pytest.raises(ClipbiasError, match="exists already"):
        shards.build(dataset, tmp_path / "shards")


def test_failed_build_leaves_nothing(tmp_path):
    source = miniatures.make(tmp_path, "ucf101")
    dataset = data.load("ucf101", data_dir=tmp_path)
    (source / "UCF-101-midframes" / dataset.splits["test"].keys[-1]).unlink()
    with pytest.raises(ClipbiasError, match="cannot read the image"):
        shards.build(dataset, tmp_path / "shards")
    assert shards.find("ucf101", tmp_path / "shards") is None


@pytest.fixture
def small(tmp_path):
    miniatures.make(tmp_path / "folders", "ucf101")
    return data.load("ucf101", data_dir=tmp_path / "folders")


@contextlib.contextmanager
def no_room_for(size):
    """No file can grow beyond `size` bytes, as on a disk with no more room than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing(small, tmp_path):
    (tmp_path / "own").mkdir()
    for place in ("own", "made"):
        with no_room_for(512), pytest.raises(ClipbiasError, match=r"cannot write shards .*: File too large; choose"):
            shards.build(small, tmp_path / place)
    assert not list((tmp_path / "own").iterdir()) and not (tmp_path / "made").exists()


def test_tensorflow_is_not_imported(tmp_path):
    miniatures.make(tmp_path, "dtd")
    shards.build(data.load("dtd", data_dir=tmp_path), tmp_path / "shards")
    code = (
        "import sys; from clipbias import data; "
        f"d = data.load('dtd', data_dir={str(tmp_path / 'shards')!r}); d.splits['train'].read(0); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
