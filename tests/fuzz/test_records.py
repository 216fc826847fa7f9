"""Shards of a dataset: their descriptions, the index beside them and the records, damaged one at a time."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipbias import data
from clipbias.data import tfds
from clipbias.data.tfds import check_features
from clipbias.errors import ClipbiasError
from tests.data import miniatures
from tests.fuzz.answers import answered, corrupted, mutated

INDEX = "clipbias_index_train.npz"
DESCRIPTIONS = ("dataset_info.json", "features.json", "metadata.json")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the shards, with the index of every split."""
    root = tmp_path_factory.mktemp("records")
    miniatures.make(root / "images", "eurosat")
    folder = Path(tfds.build_shards(data.load("eurosat", data_dir=root / "images"), root / "shards"))
    use(root / "shards")
    return folder


def use(place: Path) -> None:
    """Opens the shards and reads every image."""
    dataset = data.load("eurosat", data_dir=place)
    for split in dataset.splits.values():
        for index in range(len(split)):
            assert isinstance(split.read(index), bytes)


def use_with(folder: Path, name: str, content: bytes | str) -> None:
    """What opening answers with another content of one file, with and without the index beside it."""
    copy = folder.parents[2] / "damaged"
    place = copy / folder.parent.name / folder.name
    shutil.copytree(folder, place)
    try:
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        answered(lambda: use(copy))
        for index in place.glob("clipbias_index_*"):
            index.unlink()
        answered(lambda: use(copy))
    finally:
        shutil.rmtree(copy)


@given(st.data(), st.sampled_from(DESCRIPTIONS))
def test_damaged_descriptions(built, data, name):
    content = (built / name).read_bytes()
    use_with(built, name, data.draw(corrupted(content)))
    use_with(built, name, json.dumps(data.draw(mutated(json.loads(content)))))


@given(st.data())
def test_a_damaged_index(built, data):
    use_with(built, INDEX, data.draw(corrupted((built / INDEX).read_bytes())))


@given(st.data(), st.sampled_from(("train", "test")))
def test_damaged_records(built, data, split):
    path = next(built.glob(f"*-{split}.array_record*"))
    use_with(built, path.name, data.draw(corrupted(path.read_bytes())))


@pytest.mark.parametrize("split", ["../../../escaped", "a/b", "", "train\0"])
def test_a_split_does_not_name_a_file_elsewhere(built, split, monkeypatch):
    """A description may call a split anything, and the name of the split becomes a part of the index's."""
    described = json.loads((built / "dataset_info.json").read_text())
    for part in described["splits"]:
        part["name"] = split if part["name"] == "train" else part["name"]
    use_with(built, "dataset_info.json", json.dumps(described))
    prepared = tfds.find_prepared(built.parents[1], built.parent.name, "0.0.0")
    monkeypatch.setattr(type(prepared), "splits", (split, "test"))
    monkeypatch.setattr(prepared._builder.info, "_splits", {split: prepared._builder.info.splits["train"]})
    with pytest.raises(ClipbiasError, match="has no split"):
        prepared.records(split, None)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_description_does_not_choose_what_is_imported(built, key):
    before = set(sys.modules)
    described = json.loads((built / "features.json").read_text())
    described["featuresDict"]["features"]["key"] = {key: "antigravity.Feature", "text": {}}
    with pytest.raises(ClipbiasError, match=r"names the class 'antigravity\.Feature'; only TFDS's own are read"):
        check_features(written(built.parent / "features.json", json.dumps(described)))
    use_with(built, "features.json", json.dumps(described))
    assert "antigravity" not in set(sys.modules) - before


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
