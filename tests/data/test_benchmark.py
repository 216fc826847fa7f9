"""The fifteen datasets in CoOp's layout, from miniatures; the catalogue; the check of what lies on disk."""

import collections
import dataclasses
import hashlib
import os

import numpy as np
import pytest

from clipbias import data
from clipbias.data import benchmark_check, catalog
from clipbias.data.dataset import check_template
from clipbias.report import contact_sheet
from tests.data import miniatures
from tests.data.miniatures import plain_draw
from tests.data.pictures import write
from tests.documents import ROOT


@pytest.mark.parametrize("name", list(catalog.ENTRIES))
def test_every_image_is_found_with_its_label(fifteen, name):
    entry = catalog.ENTRIES[name]
    dataset = data.load(name, data_dir=fifteen / entry.folder)
    assert dataset.name == name and dataset.template == entry.template
    assert set(dataset.splits) == set(entry.sizes)
    for split in dataset.splits.values():
        assert len(split) > 0
        for index in range(len(split)):
            assert split.read(index) == (fifteen / entry.folder / entry.image_folder / split.keys[index]).read_bytes()
    if name in miniatures.NAMED:
        assert dataset.class_names == tuple(class_name for _, class_name in miniatures.NAMED[name])
        for split_name, items in miniatures.split_content(name).items():
            split = dataset.splits[split_name]
            assert list(zip(split.keys, split.labels, strict=True)) == [(key, label) for key, label, _ in items]


def test_aircraft_follows_variants(fifteen):
    dataset = data.load("fgvc_aircraft", data_dir=fifteen)
    assert dataset.class_names == miniatures.AIRCRAFT
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
    images = folder / catalog.ENTRIES["imagenet_v2"].image_folder
    os.rename(images / "3", images / "10")
    dataset = data.load("imagenet_v2", data_dir=tmp_path)
    assert len(dataset.class_names) == 1000 and dataset.class_names[10] == "brambling"
    assert dataset.splits["test"].labels.tolist() == [0, 0, 1, 1, 2, 2, 10, 10]


# The catalogue is complete and consistent with itself and with published facts


@pytest.mark.parametrize("entry", catalog.ENTRIES.values(), ids=lambda entry: entry.name)
def test_entries_are_complete(entry):
    check_template(entry.template)
    assert (entry.layout == "split file") == (entry.split_file is not None) == entry.split_url.startswith("https://")
    assert all(place and "https://" in url for place, url in entry.fetch.items())
    assert "test" in entry.sizes and entry.sizes.keys() <= {"train", "val", "test"}
    assert f"`{entry.name}`" in (ROOT / "docs" / "datasets.md").read_text("utf-8")
    if entry.tfds:
        assert set(entry.tfds.splits.values()) <= {"train", "val", "test", "all"}
        entry.tfds.path.format(id="1", label="a", split="train")


@pytest.mark.parametrize(
    ("dataset", "label", "name"),
    [
        ("caltech101", "Motorbikes", "motorbike"),
        ("ucf101", "ApplyEyeMakeup", "Apply_Eye_Makeup"),
        ("oxford_flowers", "pink-yellow dahlia?", "pink-yellow dahlia"),
        ("oxford_pets", "Great_Pyrenees", "great_pyrenees"),
    ],
)
def test_class_name_rules(dataset, label, name):
    """Others are compared with the benchmark's names in `test_tfds_source.py`."""
    assert catalog.ENTRIES[dataset].class_name(label) == name


def test_imagenet_classes_are_sorted_and_two_names_repeat():
    classes = catalog.imagenet_classes()
    assert len(classes) == 1000 and list(classes) == sorted(classes)
    repeated = [name for name, count in collections.Counter(classes.values()).items() if count > 1]
    assert sorted(repeated) == ["missile", "sunglasses"]
    names = list(classes.values())
    assert [index for index, name in enumerate(names) if name in repeated] == [657, 744, 836, 837]


# The check of datasets on disk and the contact sheet


def plain_golden(name, seed):
    """The short hashes of the picks, from the split file's content alone."""
    content = miniatures.split_content(name)
    texts = ("\n".join(path for path, *_ in items) for items in plain_draw(content["train"], content["val"], 16, seed))
    return tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts)


def entry_of(name, **changes):
    """The catalogue entry with the miniature's sizes; no picks count as published."""
    sizes = {split: 3 * count for split, count in miniatures.COUNTS.items()}
    return dataclasses.replace(catalog.ENTRIES[name], **{"classes": 3, "sizes": sizes, "picks": (), **changes})


@pytest.fixture
def enough_images(monkeypatch):
    """Miniatures with more images than shots, so that the draw is a draw."""
    monkeypatch.setattr(miniatures, "COUNTS", {"train": 20, "val": 6, "test": 2})


def test_complete_dataset_is_ok(tmp_path, enough_images):
    miniatures.make(tmp_path, "dtd")
    published = [plain_golden("dtd", seed) for seed in (1, 2, 3)]
    finding = benchmark_check.check(entry_of("dtd", picks=published), tmp_path, decode=True)
    assert (finding.state, finding.picks, finding.problems) == ("ok", (3, 3), ())
    content = (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").read_bytes()
    assert finding.split_hash == hashlib.sha256(content).hexdigest()[:16]


def test_other_picks_and_counts_are_told(tmp_path, enough_images):
    miniatures.make(tmp_path, "dtd")
    published = [plain_golden("dtd", 1), ("0" * 16, "0" * 16)]
    finding = benchmark_check.check(entry_of("dtd", picks=published), tmp_path)
    assert finding.state == "differs" and finding.picks == (1, 2)
    finding = benchmark_check.check(catalog.ENTRIES["dtd"], tmp_path)
    assert finding.state == "differs" and "classes, train, val, test is not the catalogue's" in finding.problems[0]
    assert "60 of 2820" in benchmark_check.table([finding])


def test_damaged_images_are_named(tmp_path):
    folder = miniatures.make(tmp_path, "eurosat") / "2750"
    keys = data.load("eurosat", data_dir=tmp_path).splits["train"].keys
    (folder / keys[0]).unlink()
    (folder / keys[1]).write_bytes(b"")
    (folder / keys[2]).write_bytes((folder / keys[2]).read_bytes()[:200])
    finding = benchmark_check.check(entry_of("eurosat"), tmp_path)
    assert finding.state == "broken" and "2 images missing or unreadable" in finding.problems[0]
    assert keys[0] in finding.problems[0] and keys[1] in finding.problems[0]
    decoded = benchmark_check.check(entry_of("eurosat"), tmp_path, decode=True)
    assert "3 images" in decoded.problems[0] and keys[2] in decoded.problems[0]


def test_own_images_are_checked_too(tmp_path):
    for name in ("cat", "dog"):
        for number in range(4):
            write(tmp_path / name / f"{number}.png")
    whole = benchmark_check.check_images(data.load("folder", data_dir=tmp_path))
    assert (whole.state, whole.problems) == ("ok", ())
    (tmp_path / "cat" / "1.png").write_bytes(b"no image")
    dataset = data.load("folder", data_dir=tmp_path)
    assert benchmark_check.check_images(dataset).state == "ok"
    damaged = benchmark_check.check_images(dataset, decode=True)
    assert damaged.state == "broken" and f"{tmp_path}/cat/1.png" in damaged.problems[0]


def test_a_dataset_that_is_missing_or_has_no_split_file_says_what_to_do(tmp_path):
    finding = benchmark_check.check(catalog.ENTRIES["sun397"], tmp_path)
    assert finding.state == "missing" and "put into sun397/: SUN397 from https://" in finding.problems[0]
    (tmp_path / "sun397").mkdir()
    finding = benchmark_check.check(catalog.ENTRIES["sun397"], tmp_path)
    assert finding.state == "broken" and "split_zhou_SUN397.json" in finding.problems[0]


def test_contact_sheet_shows_picks_and_crops(tmp_path):
    miniatures.make(tmp_path, "eurosat")
    dataset = data.load("eurosat", data_dir=tmp_path)
    sheet = contact_sheet.contact_sheet(dataset, shots=2, seed=1)
    first = dataset.splits["train"].subset(data.few_shot(dataset.splits["train"], None, shots=2, seed=1)[0])
    resizing = data.transforms.Resizing(contact_sheet.TILE)
    expected = data.transforms.test_image(first.image(0), resizing)
    shown = np.reshape(sheet.axes, (len(dataset.class_names), 2 + contact_sheet.CROPS))
    np.testing.assert_array_equal(shown[0, 0].images[0].get_array(), expected)
    crops = [np.asarray(axes.images[0].get_array()) for axes in shown[0, 2:]]
    assert not any(np.array_equal(crop, expected) for crop in crops)
    assert dataset.class_names[first.labels[0]].replace("_", " ") in shown[0, 0].get_title("left")
