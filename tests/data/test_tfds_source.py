"""Prepared TFDS datasets: the benchmark's split imposed by file name, the builders' traps, the project's shards."""

import contextlib
import resource
import subprocess
import sys
import tempfile

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


def stock(root, tfds_dir, name, label_of, id_of, label_names, layout, **options):
    """Moves the images of a miniature into a stock builder's splits, in another order."""
    dataset = data.load(name, data_dir=root)
    splits = {stock_name: [] for stock_name in layout}
    for stock_name, parts in layout.items():
        for part in parts:
            split = dataset.splits[part]
            for index in reversed(range(len(split))):
                key = split.keys[index]
                splits[stock_name].append((split.read(index), label_of(key, split.labels[index]), id_of(key)))
    entry = catalog.ENTRIES[name]
    builder, _, config = entry.tfds.builder.partition("/")
    return dataset, prepare(
        tfds_dir, builder, label_names, splits, id_feature=entry.tfds.id_feature, config=config or None, **options
    )


def test_food101_exchanged_labels(tmp_path):
    miniatures.make(tmp_path, "food101")
    swapped = ["apple_pie", "cheesecake", "cheese_plate"]
    dataset, _ = stock(
        tmp_path,
        tmp_path / "tfds",
        "food101",
        lambda key, label: key.split("/")[0],
        lambda key: key.removesuffix(".jpg"),
        swapped,
        {"train": ["train", "test"], "validation": ["val"]},
        version="2.1.0",
    )
    imposed = data.load("tfds/food101", data_dir=tmp_path / "tfds", split="coop", split_dir=tmp_path)
    assert_equal(imposed, dataset)
    assert same_picks(imposed, dataset)
    loaded = data.load("tfds/food101", data_dir=tmp_path / "tfds")
    assert loaded.class_names == tuple(swapped)
    assert len(loaded.splits["test"]) == 9 and len(loaded.splits["train"]) + len(loaded.splits["val"]) == 21


def test_caltech101_lower_case_and_extra_classes(tmp_path, caplog):
    miniatures.make(tmp_path, "caltech101")
    labels = ["accordion", "background_google", "faces", "faces_easy", "leopards"]
    dataset, _ = stock(
        tmp_path,
        tmp_path / "tfds",
        "caltech101",
        lambda key, label: key.split("/")[0].lower(),
        lambda key: key.split("/")[1],
        labels,
        {"train": ["val", "train"], "test": ["test"]},
    )
    assert_equal(data.load("tfds/caltech101", data_dir=tmp_path / "tfds", split="coop", split_dir=tmp_path), dataset)
    loaded = data.load("tfds/caltech101", data_dir=tmp_path / "tfds")
    assert loaded.class_names == ("accordion", "face", "leopard")
    assert "is not the benchmark's split" in caplog.text


def test_eurosat_single_split_is_divided(tmp_path):
    miniatures.make(tmp_path, "eurosat")
    dataset, folder = stock(
        tmp_path,
        tmp_path / "tfds",
        "eurosat",
        lambda key, label: key.split("/")[0],
        lambda key: key.split("/")[1],
        ["AnnualCrop", "Forest", "SeaLake"],
        {"train": ["test", "train", "val"]},
        version="2.0.0",
    )
    assert folder.relative_to(tmp_path / "tfds").as_posix() == "eurosat/rgb/2.0.0"
    imposed = data.load("tfds/eurosat", data_dir=tmp_path / "tfds", split="coop", split_dir=tmp_path / "eurosat")
    assert_equal(imposed, dataset)
    loaded = data.load("tfds/eurosat/rgb", data_dir=tmp_path / "tfds")
    assert loaded.class_names == dataset.class_names
    assert {name: len(split) for name, split in loaded.splits.items()} == {"train": 15, "val": 6, "test": 9}
    with pytest.raises(ClipbiasError, match=r"no split file .*; say where it is with split_dir"):
        data.load("tfds/eurosat", data_dir=tmp_path / "tfds", split="coop")


def test_cars_repeat_stems_and_sun_paths(tmp_path):
    for name in ("stanford_cars", "sun397"):
        miniatures.make(tmp_path, name)
    cars, _ = stock(
        tmp_path,
        tmp_path / "tfds",
        "stanford_cars",
        lambda key, label: ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "BMW X6 2012"][label],
        lambda key: key.split("/")[1].removesuffix(".jpg"),
        ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "BMW X6 2012"],
        {"train": ["train", "val"], "test": ["test"]},
        version="2.1.0",
    )
    assert_equal(data.load("tfds/cars196", data_dir=tmp_path / "tfds", split="coop", split_dir=tmp_path), cars)
    assert data.load("tfds/cars196", data_dir=tmp_path / "tfds").class_names == cars.class_names
    sun, _ = stock(
        tmp_path,
        tmp_path / "tfds",
        "sun397",
        lambda key, label: "/" + key.rpartition("/")[0],
        lambda key: "/" + key,
        ["/a/abbey", "/a/apse/indoor", "/y/youth_hostel"],
        {"train": ["train", "val"], "test": ["test"]},
        version="4.0.0",
    )
    assert_equal(data.load("tfds/sun397", data_dir=tmp_path / "tfds", split="coop", split_dir=tmp_path), sun)


def test_imagenet_needs_no_split_file(tmp_path):
    miniatures.make(tmp_path, "imagenet")
    wnids = list(miniatures.WNIDS)
    dataset, _ = stock(
        tmp_path,
        tmp_path / "tfds",
        "imagenet",
        lambda key, label: wnids[label],
        lambda key: key.rpartition("/")[2],
        wnids,
        {"train": ["train"], "validation": ["val"]},
    )
    assert_equal(data.load("tfds/imagenet2012", data_dir=tmp_path / "tfds"), dataset)


def test_imagenet_r_is_200_way(tmp_path):
    miniatures.make(tmp_path, "imagenet_r")
    wnids = ["n00000001", *miniatures.WNIDS]  # the builder numbers all 1000 classes
    dataset, _ = stock(
        tmp_path,
        tmp_path / "tfds",
        "imagenet_r",
        lambda key, label: key.split("/")[0],
        lambda key: key,
        wnids,
        {"test": ["test"]},
    )
    assert_equal(data.load("tfds/imagenet_r", data_dir=tmp_path / "tfds"), dataset)


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


@pytest.mark.parametrize("name", ["fgvc_aircraft", "imagenet", "ucf101"])
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


def test_a_build_leaves_the_shards_alone(small, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    shards.build(small, tmp_path / "shards")
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["ucf101_coop"]
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_a_folder_that_cannot_be_made(small, tmp_path, place):
    (tmp_path / "file").write_text("1")
    with pytest.raises(ClipbiasError, match=r"cannot write shards to .*(directory|permitted|denied); choose another"):
        shards.build(small, tmp_path / place)
    assert (tmp_path / "file").read_text() == "1"


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
