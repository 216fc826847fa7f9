"""Images and records in an object store: what is opened there is what is opened on a disk."""

from pathlib import Path

import pytest

from clipbias import clip as clip_package
from clipbias import data
from clipbias import io as files
from clipbias.data import tfds, user_images
from clipbias.errors import ClipbiasError
from clipbias.tuning.adapter import read_adapter
from experiments.inputs import find_images
from tests import bucket as buckets
from tests.bucket import Bucket
from tests.data import miniatures
from tests.data.miniatures import assert_same, image, prepare
from tests.data.pictures import write

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
GS = "gs://bucket/data"
INDEX = f"{GS}/ucf101_coop/1.0.0/clipbias_index_train.npz"


def upload(store: Bucket, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"{GS}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def no_package(path: str) -> None:
    raise ImportError("Please install it")


@pytest.mark.parametrize("name", ["imagenet", "fgvc_aircraft"])
def test_catalogue_datasets(tmp_path, bucket, name):
    miniatures.make(tmp_path, name)
    upload(bucket, tmp_path)
    assert_same(data.load(name, data_dir=GS), data.load(name, data_dir=tmp_path))


def test_folders_tables_and_pictures(tmp_path, bucket):
    for place in ("cat/1.png", "cat/in/2.JPG", "cat/.hidden.png", "dog/in/.in/4.png", "dog/1.png", ".x/1.png"):
        write(tmp_path / place, seed=len(place))
    (tmp_path / "dog" / "note.txt").write_text("no image")
    (tmp_path / "all.csv").write_text("path,label\ncat/1.png,cat\ndog/1.png,dog\ncat/in/2.JPG,cat\n")
    upload(bucket, tmp_path)
    assert_same(data.load("folder", data_dir=GS), data.load("folder", data_dir=tmp_path))
    assert_same(data.load("csv", data_dir=f"{GS}/all.csv"), data.load("csv", data_dir=tmp_path / "all.csv"))
    address, path = f"{GS}/dog/1.png", tmp_path / "dog" / "1.png"
    assert [str(each) for each in find_images(f"{GS}/dog")] == [address]
    assert user_images.UserImages([address]).decoded(0) == user_images.UserImages([path]).decoded(0)
    assert user_images.image_list([address], [1], ["a", "b"]).read(0) == path.read_bytes()


def test_what_is_not_there_or_cannot_be_had_is_one_sentence(tmp_path, bucket, monkeypatch):
    with pytest.raises(ClipbiasError, match=r"there is no folder gs://bucket/data; check data_dir"):
        data.load("folder", data_dir=GS)
    miniatures.make(tmp_path, "ucf101")
    dataset = data.load("ucf101", data_dir=tmp_path)
    upload(bucket, tmp_path)
    gone = data.load("ucf101", data_dir=GS).split("test")
    bucket.rm_file(f"{GS}/ucf101/UCF-101-midframes/{gone.keys[0]}")
    with pytest.raises(ClipbiasError, match=r"cannot read the image gs://.*, listed in split_zhou_UCF101\.json: "):
        gone.read(0)
    for call in (
        lambda: tfds.build_shards(dataset, GS),
        lambda: data.load("tfds/dtd", data_dir="s3://bucket/data"),
        lambda: clip_package.load(f"{GS}/model"),
        lambda: read_adapter(f"{GS}/adapter.safetensors"),
    ):
        with pytest.raises(ClipbiasError, match=r"(gs|s3)://\S+ is in a bucket.*mount the bucket"):
            call()
    bucket.refused = "Anonymous caller\nhas no access"
    with pytest.raises(ClipbiasError, match="cannot open gs://bucket/data: Anonymous caller has no access; check"):
        data.load("folder", data_dir=GS)
    monkeypatch.setattr(files, "_store", no_package)
    with pytest.raises(ClipbiasError, match=r"gs://bucket/data needs a package to be read: pip install gcsfs"):
        data.load("folder", data_dir=GS)


# Records, which array_record reads by HTTP.


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
    tfds.build_shards(dataset, tmp_path / "shards")
    upload(served, tmp_path / "shards")
    return dataset


def test_shards_open_by_their_index_alone(served, folders):
    data.load("ucf101", data_dir=GS)
    assert served.ranges == [] and INDEX in served.read_objects
    assert_same(data.load("ucf101", data_dir=GS), folders)
    assert {path.rpartition("-train.")[2][:12] for path, _ in served.ranges} >= {"array_record"}


def test_records_that_tfds_has_prepared(served, tmp_path):
    records = [(image(number), ["cat", "dog"][number % 2], str(number)) for number in range(6)]
    prepare(tmp_path / "tfds", "pets", ["cat", "dog"], {"train": records, "test": records[:2]}, id_feature=None)
    upload(served, tmp_path / "tfds")
    here, there = (data.load("tfds/pets", data_dir=place) for place in (tmp_path / "tfds", GS))
    for name, split in here.splits.items():
        assert there.splits[name].keys == split.keys and there.splits[name].read(0) == split.read(0)


def test_a_record_that_cannot_be_read_is_one_sentence(served, folders):
    split = data.load("ucf101", data_dir=GS).split("train")
    for path in served.find(GS):
        if "-train.array_record" in path:
            served.rm_file(path)
    with pytest.raises(ClipbiasError, match=r"record \d+ of train in gs://.*see that this machine may read the bucket"):
        split.read(0)
