"""Records in Google's object store: what is opened there is what they were made of, and their index lies there, too."""

from pathlib import Path

import pytest

from clipbias import data
from clipbias.data import shards
from clipbias.errors import ClipbiasError
from tests import bucket as buckets
from tests.bucket import Bucket
from tests.data import miniatures
from tests.data.stock_builders import image, prepare
from tests.data.test_remote import GS, upload

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
INDEX = f"{GS}/ucf101_coop/1.0.0/clipbias_index_train.npz"


@pytest.fixture
def served(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The store, as etils sees it and as array_record's reader does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    buckets.serve(bucket, monkeypatch)
    return bucket


@pytest.fixture
def folders(served: Bucket, tmp_path: Path) -> data.Dataset:
    """A dataset whose shards are in the store."""
    miniatures.make(tmp_path / "folders", "ucf101")
    dataset = data.load("ucf101", data_dir=tmp_path / "folders")
    shards.build(dataset, tmp_path / "shards")
    upload(served, tmp_path / "shards")
    return dataset


def assert_opens(dataset: data.Dataset) -> None:
    loaded = data.load("ucf101", data_dir=GS)
    assert loaded.class_names == dataset.class_names and loaded.splits.keys() == dataset.splits.keys()
    for name, split in dataset.splits.items():
        twin = loaded.splits[name]
        assert twin.keys == split.keys and (twin.labels == split.labels).all()
        assert [twin.read(index) for index in range(len(twin))] == [split.read(index) for index in range(len(split))]


def test_shards_open_by_their_index_alone(served, folders) -> None:
    data.load("ucf101", data_dir=GS)
    assert served.ranges == [] and INDEX in served.read_objects
    assert_opens(folders)
    assert {path.rpartition("-train.")[2][:12] for path, _ in served.ranges} >= {"array_record"}


def test_records_that_tfds_has_prepared(served, tmp_path) -> None:
    records = [(image(number), ["cat", "dog"][number % 2], str(number)) for number in range(6)]
    prepare(tmp_path / "tfds", "pets", ["cat", "dog"], {"train": records, "test": records[:2]}, id_feature=None)
    upload(served, tmp_path / "tfds")
    here, there = (data.load("tfds/pets", data_dir=place) for place in (tmp_path / "tfds", GS))
    for name, split in here.splits.items():
        assert there.splits[name].keys == split.keys and there.splits[name].read(0) == split.read(0)


def test_what_cannot_be_read_is_one_sentence(served, folders) -> None:
    split = data.load("ucf101", data_dir=GS).split("train")
    for path in served.find(GS):
        if "-train.array_record" in path:
            served.rm_file(path)
    with pytest.raises(ClipbiasError, match=r"record \d+ of train in gs://.*see that this machine may read the bucket"):
        split.read(0)
