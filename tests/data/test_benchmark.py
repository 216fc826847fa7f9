"""The fifteen datasets in CoOp's layout, from miniatures, what is said when something is off, and the catalogue."""

import collections
import os

import pytest

from clipbias import data
from clipbias.data import catalog
from clipbias.data.dataset import check_template
from tests.data import miniatures


@pytest.mark.parametrize("name", list(catalog.ENTRIES))
def test_every_image_is_found_with_its_label(fifteen, name):
    dataset = data.load(name, data_dir=fifteen)
    entry = catalog.ENTRIES[name]
    assert dataset.name == name and dataset.template == entry.template
    assert set(dataset.splits) == set(entry.sizes)
    for split in dataset.splits.values():
        assert len(split) > 0
        for index in range(len(split)):
            assert split.read(index) == (fifteen / entry.folder / entry.images / split.keys[index]).read_bytes()


@pytest.mark.parametrize("name", list(miniatures.NAMED))
def test_split_file_order_labels_and_names(fifteen, name):
    dataset = data.load(name, data_dir=fifteen / catalog.ENTRIES[name].folder)
    assert dataset.class_names == tuple(class_name for _, class_name in miniatures.NAMED[name])
    for split_name, items in miniatures.split_content(name).items():
        assert list(dataset.splits[split_name].keys) == [item[0] for item in items]
        assert dataset.splits[split_name].labels.tolist() == [item[1] for item in items]


def test_aircraft_follows_variants(fifteen):
    dataset = data.load("fgvc_aircraft", data_dir=fifteen)
    assert dataset.class_names == miniatures.AIRCRAFT
    assert dataset.splits["train"].keys[:2] == ("0000001.jpg", "0000002.jpg")
    assert dataset.splits["train"].labels[:5].tolist() == [0, 1, 2, 3, 0]


def test_imagenet_is_sorted_and_val_is_test(fifteen):
    dataset = data.load("imagenet", data_dir=fifteen)
    assert dataset.class_names == miniatures.WNID_NAMES and dataset.class_ids == miniatures.WNIDS
    assert dataset.splits["train"].keys[0] == "train/n01440764/n01440764_100.JPEG"
    assert dataset.splits["train"].keys[1] == "train/n01440764/n01440764_96.JPEG"
    assert dataset.splits["val"].keys == dataset.splits["test"].keys


def test_variants_give_imagenet_labels_or_ranks(fifteen, tmp_path):
    v2 = data.load("imagenet_v2", data_dir=fifteen)
    assert v2.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.load("imagenet_r", data_dir=fifteen).class_ids == miniatures.WNIDS
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


# The catalogue is complete and consistent with itself and with published facts


@pytest.mark.parametrize("entry", catalog.ENTRIES.values(), ids=lambda entry: entry.name)
def test_entries_are_complete(entry):
    check_template(entry.template)
    assert (entry.layout == "split file") == (entry.split_file is not None) == entry.split_url.startswith("https://")
    assert all(place and "https://" in url for place, url in entry.fetch)
    assert set(entry.sizes) == ({"train", "val", "test"} if entry.name in catalog.ELEVEN else {"test"})
    if entry.tfds:
        assert set(entry.tfds.splits.values()) <= {"train", "val", "test", "all"}
        entry.tfds.path.format(id="1", label="a", split="train")


def test_eleven_and_four():
    assert len(catalog.ELEVEN) == 11 and len(catalog.VARIANTS) == 4 and len(catalog.ENTRIES) == 15
    assert sum(catalog.ENTRIES[name].classes for name in catalog.ELEVEN) == 2191
    random_splits = [catalog.ENTRIES[name] for name in ("food101", "dtd", "eurosat")]
    for entry in random_splits:  # 50/20/30 exactly, where every class has a round number of images
        total = sum(entry.sizes.values())
        assert [10 * entry.sizes[name] for name in ("train", "val", "test")] == [total * 5, total * 2, total * 3]


def test_class_name_rules():
    assert catalog.caltech101("Faces") == catalog.caltech101("faces") == "face"
    assert [catalog.caltech101(name) for name in ("airplanes", "Motorbikes", "accordion")] == [
        "airplane",
        "motorbike",
        "accordion",
    ]
    assert catalog.stanford_cars("Audi TTS Coupe 2012") == "2012 Audi TTS Coupe"
    assert catalog.sun397("/a/apse/indoor") == "indoor apse"
    assert catalog.sun397("/a/abbey") == "abbey"
    assert catalog.ucf101("ApplyEyeMakeup") == "Apply_Eye_Makeup"
    assert catalog.ucf101("YoYo") == "Yo_Yo"
    assert [catalog.EUROSAT.class_name(name) for name in ("SeaLake", "River")] == ["Sea or Lake", "River"]
    assert catalog.OXFORD_FLOWERS.class_name("pink-yellow dahlia?") == "pink-yellow dahlia"
    assert catalog.OXFORD_PETS.class_name("Great_Pyrenees") == "great_pyrenees"
    assert catalog.DTD.class_name("zigzagged") == "zigzagged"
    assert catalog.imagenet("n01440764") == "tench"


def test_imagenet_classes_are_sorted_and_two_names_repeat():
    classes = catalog.imagenet_classes()
    assert len(classes) == 1000 and list(classes) == sorted(classes)
    repeated = [name for name, count in collections.Counter(classes.values()).items() if count > 1]
    assert sorted(repeated) == ["missile", "sunglasses"]
    names = list(classes.values())
    assert [index for index, name in enumerate(names) if name in repeated] == [657, 744, 836, 837]
