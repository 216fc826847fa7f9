"""The fifteen datasets in CoOp's layout, from miniatures, and what is said when something is off."""

import os

import pytest

from clipbias import data
from clipbias.data import catalog
from tests.data import miniatures


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return miniatures.make_all(tmp_path_factory.mktemp("all"))


@pytest.mark.parametrize("name", list(catalog.ENTRIES))
def test_every_image_is_found_with_its_label(root, name):
    dataset = data.load(name, data_dir=root)
    entry = catalog.ENTRIES[name]
    assert dataset.name == name and dataset.template == entry.template
    assert set(dataset.splits) == set(entry.sizes)
    for split in dataset.splits.values():
        assert len(split) > 0
        for index in range(len(split)):
            assert split.read(index) == (root / entry.folder / entry.images / split.keys[index]).read_bytes()


@pytest.mark.parametrize("name", list(miniatures.NAMED))
def test_split_file_order_labels_and_names(root, name):
    dataset = data.load(name, data_dir=root / catalog.ENTRIES[name].folder)
    assert dataset.class_names == tuple(class_name for _, class_name in miniatures.NAMED[name])
    for split_name, items in miniatures.split_content(name).items():
        assert list(dataset.splits[split_name].keys) == [item[0] for item in items]
        assert dataset.splits[split_name].labels.tolist() == [item[1] for item in items]


def test_aircraft_follows_variants(root):
    dataset = data.load("fgvc_aircraft", data_dir=root)
    assert dataset.class_names == miniatures.AIRCRAFT
    assert dataset.splits["train"].keys[:2] == ("0000001.jpg", "0000002.jpg")
    assert dataset.splits["train"].labels[:5].tolist() == [0, 1, 2, 3, 0]


def test_imagenet_is_sorted_and_val_is_test(root):
    dataset = data.load("imagenet", data_dir=root)
    assert dataset.class_names == miniatures.WNID_NAMES and dataset.class_ids == miniatures.WNIDS
    assert dataset.splits["train"].keys[0] == "train/n01440764/n01440764_100.JPEG"
    assert dataset.splits["train"].keys[1] == "train/n01440764/n01440764_96.JPEG"
    assert dataset.splits["val"].keys == dataset.splits["test"].keys


def test_variants_give_imagenet_labels_or_ranks(root, tmp_path):
    v2 = data.load("imagenet_v2", data_dir=root)
    assert v2.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.load("imagenet_r", data_dir=root).class_ids == miniatures.WNIDS
    folder = miniatures.make(tmp_path, "imagenet_v2")
    (folder / "classnames.txt").unlink()
    images = folder / catalog.ENTRIES["imagenet_v2"].images
    os.rename(images / "3", images / "10")
    dataset = data.load("imagenet_v2", data_dir=tmp_path)
    assert len(dataset.class_names) == 1000 and dataset.class_names[10] == "brambling"
    assert dataset.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2, 10, 10]


def test_rank_labels_leave_out_absent_classes(tmp_path):
    folder = miniatures.make(tmp_path, "imagenet_a")
    images = folder / "imagenet-a"
    for path in (images / miniatures.WNIDS[1]).iterdir():
        path.unlink()
    (images / miniatures.WNIDS[1]).rmdir()
    (images / "README.txt").write_text("not a class")
    dataset = data.load("imagenet_a", data_dir=tmp_path)
    assert dataset.class_names == ("tench", "missile", "missile")
    assert dataset.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
