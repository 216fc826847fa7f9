"""The demo datasets: what they promise to whoever loads them, and that the code that made them still makes them."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from clipbias.data import demo, make_protocol
from clipbias.data.dataset import Split
from tools.demo import concepts, datasets, icons

# SHA-256 over the files of all splits, as they were packed.
DIGESTS = {
    "demo/digits": "fbeb6e2fa7be7550",
    "demo/fashion": "532a676673960ce1",
    "demo/emoji": "2da02d53e81707fa",
    "demo/emoji_outlined": "1c271b09c5ab2617",
    "demo/emoji_glossy": "2a30f2481f47df0f",
    "demo/emoji_black": "0251d5eaf76b12b5",
}
SIZES = {
    "demo/digits": {"train": 20, "val": 12, "test": 112},
    "demo/fashion": {"train": 20, "val": 40, "test": 112},
    "demo/emoji": {"train": 20, "val": 8, "test": 19},
    **{name: {"test": 19} for name in demo.EMOJI},
}


def pixels(split: Split, index: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(split.read(index))))


@pytest.mark.parametrize("name", demo.NAMES)
def test_the_files_are_those_that_were_packed(name):
    archive = demo._archive(name.removeprefix("demo/"))
    digest = hashlib.sha256()
    for key in archive.namelist()[1:]:
        digest.update(archive.read(key))
    assert digest.hexdigest()[:16] == DIGESTS[name]


def test_scans_are_enlarged_to_the_same_pixels_everywhere():
    digest = hashlib.sha256()
    for split in demo.load("demo/digits").splits.values():
        for index in range(len(split)):
            digest.update(pixels(split, index).tobytes())
    assert digest.hexdigest()[:16] == "1402462ed8b361c1"


@pytest.mark.parametrize("name", demo.NAMES)
def test_every_split_has_every_class_equally_often(name):
    dataset = demo.load(name)
    classes = len(dataset.class_names)
    assert classes == len(set(dataset.class_names)) == (60 if "emoji" in name else 10)
    assert {split: len(images) for split, images in dataset.splits.items()} == {
        split: size * classes for split, size in SIZES[name].items()
    }
    for split, size in SIZES[name].items():
        np.testing.assert_array_equal(np.bincount(dataset.splits[split].labels), np.full(classes, size))
        image = pixels(dataset.splits[split], classes)
        assert image.dtype == np.uint8 and image.shape[2:] == (3,) and image.shape[0] == image.shape[1]


def test_no_image_is_there_twice():
    splits = [split for name in demo.NAMES for split in demo.load(name).splits.values()]
    images = [split.read(index) for split in splits for index in range(len(split))]
    assert len(set(images)) == len(images)


def test_digits_are_the_scans_of_scikit_learn():
    split = demo.load("demo/digits").splits["test"]
    packed = np.asarray(Image.open(io.BytesIO(demo._archive("digits").read(split.keys[200]))))
    np.testing.assert_array_equal(packed, datasets.digits().image("test", split.labels[200], 200))


def test_no_style_is_both_seen_and_tested_and_every_class_has_its_own_icons():
    assert not set(icons.SEEN) & set(icons.HELD_OUT)
    shown = [icon for members in concepts.CLASSES.values() for icon in members]
    assert len(shown) == len(set(shown)) and len(concepts.CLASSES) == 60
    assert demo.load("demo/emoji").class_names == tuple(concepts.CLASSES)


def test_the_protocols_find_their_targets_among_the_embedded_datasets():
    for protocol, names in (("domain_generalization", demo.EMOJI), ("cross_dataset", ("demo/digits", "demo/fashion"))):
        plan = make_protocol(protocol, "demo/emoji", demo.load, shots=16, seed=1)
        assert [evaluation.name for evaluation in plan.evaluations] == ["demo/emoji", *names]


def test_a_package_that_is_another_is_refused(tmp_path):
    (tmp_path / "set-1.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"has SHA-512 .* not c29tZQ==; delete it"):
        icons.fetch("https://registry.npmjs.org/set/-/set-1.tgz", "c29tZQ==", tmp_path)
