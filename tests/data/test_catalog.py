"""The catalogue is complete and consistent with itself and with published facts."""

import collections

import pytest

from clipbias.data import catalog
from clipbias.data.dataset import check_template


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
