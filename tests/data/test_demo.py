"""The demo datasets: what they promise to whoever loads them, and that the code that made them still makes them."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from clipbias.data import demo, make_protocol
from clipbias.data.dataset import Split
from tools.demo import concepts, datasets, icons, stickers

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
    **{name: {"test": 19} for name in demo.VARIANTS},
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


def test_no_accuracy_has_a_binomial_error_above_a_point_and_a_half():
    for name in demo.NAMES:
        count = len(demo.load(name).split("test"))
        assert 100 * np.sqrt(0.5 * 0.5 / count) < 1.5


def test_no_image_is_there_twice():
    splits = [split for name in demo.NAMES for split in demo.load(name).splits.values()]
    images = [split.read(index) for split in splits for index in range(len(split))]
    assert len(set(images)) == len(images)


def test_digits_are_the_scans_of_scikit_learn():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    split = demo.load("demo/digits").splits["test"]
    image = pixels(split, 200)[..., 0].astype(float)
    # Averages of 6 x 6 blocks undo the enlargement closely enough to find the scan again.
    small = image.reshape(8, 6, 8, 6).mean((1, 3)) * (16 / 255)
    distance = np.abs(bunch.images - small).mean((1, 2))
    assert bunch.target[distance.argmin()] == split.labels[200]
    assert distance.min() < 1.2 < np.median(distance)
    packed = np.asarray(Image.open(io.BytesIO(demo._archive("digits").read(split.keys[200]))))
    np.testing.assert_array_equal(packed, datasets.digits().image("test", split.labels[200], 200))


def test_fashion_is_read_from_files_in_the_format_of_mnist(tmp_path):
    import gzip
    import struct

    rng = np.random.default_rng(0)
    count = {"train": 10 * 60, "t10k": 10 * 112}
    images = {part: rng.integers(0, 256, (n, 28, 28), np.uint8) for part, n in count.items()}
    labels = {part: np.tile(np.arange(10, dtype=np.uint8), n // 10) for part, n in count.items()}
    for part, pictures in images.items():
        for kind, array in (("images", pictures), ("labels", labels[part])):
            head = struct.pack(f">HBB{array.ndim}i", 0, 8, array.ndim, *array.shape)
            name = f"{part}-{kind}-idx{array.ndim}-ubyte.gz"
            (tmp_path / name).write_bytes(gzip.compress(head + array.tobytes()))
    with flagsaver.flagsaver(fashion_mnist=str(tmp_path)):
        made = datasets.fashion.__wrapped__()
    # Training images of class 3 are the 4th, 14th, 24th, …: twenty of them, and then forty for validation.
    np.testing.assert_array_equal(made.image("train", 3, 3 * 20 + 2)[..., 1], images["train"][23])
    np.testing.assert_array_equal(made.image("val", 3, 3 * 40)[..., 0], images["train"][203])
    np.testing.assert_array_equal(made.image("test", 9, 9 * 112 + 111)[..., 2], images["t10k"][1119])
    assert len(list(made.images())) == 1720
    assert flags.FLAGS.fashion_mnist == "/usr/share/datasets/fashion-mnist"


def test_stickers_are_what_their_seed_says_and_show_the_icon():
    icon = np.zeros((icons.PIXELS, icons.PIXELS, 4), np.uint8)
    icon[20:76, 20:76] = (255, 0, 0, 255)
    first, again, other = (stickers.sticker(icon, np.random.default_rng(seed), size=64) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    red = (first == (255, 0, 0)).all(-1).sum()
    # The square is 56 / 96 of the icon's side, which is between half and 95 % of the picture's.
    assert (64 * 0.5 * 56 / 96) ** 2 * 0.6 < red < (64 * 0.95 * 56 / 96) ** 2


def test_no_style_is_both_seen_and_tested_and_every_class_has_its_own_icons():
    assert not set(icons.SEEN) & set(icons.HELD_OUT)
    shown = [icon for members in concepts.CLASSES.values() for icon in members]
    assert len(shown) == len(set(shown)) and len(concepts.CLASSES) == 60
    assert demo.load("demo/emoji").class_names == tuple(concepts.CLASSES)


def test_the_protocols_find_their_targets_among_the_embedded_datasets():
    plan = make_protocol("domain_generalization", "demo/emoji", demo.load, shots=16, seed=1)
    assert [evaluation.name for evaluation in plan.evaluations] == ["demo/emoji", *demo.VARIANTS]
    assert plan.evaluations[2].source_labels == tuple(range(60))
    plan = make_protocol("cross_dataset", "demo/emoji", demo.load, shots=16, seed=1)
    assert [evaluation.name for evaluation in plan.evaluations] == ["demo/emoji", "demo/digits", "demo/fashion"]


def test_packing_keeps_every_pixel(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    drawn = datasets.DemoDataset(
        ("a", "b"), "a {}.", {"train": 1, "test": 2}, lambda *_: rng.integers(0, 256, (9, 9, 3), np.uint8)
    )
    pictures = [drawn.image("", 0, 0) for _ in drawn.images()]
    turn = iter(pictures)
    fixed = datasets.DemoDataset(drawn.class_names, drawn.template, drawn.sizes, lambda *_: next(turn))
    monkeypatch.setattr(datasets, "DATASETS", {"mine": lambda: fixed})
    images = [datasets.compress("mine", place, method=0) for _, *place in fixed.images()]
    for name in ("mine.zip", "again.zip"):
        datasets.pack(tmp_path / name, fixed, images)
    assert (tmp_path / "mine.zip").read_bytes() == (tmp_path / "again.zip").read_bytes()
    monkeypatch.setattr(demo, "_archive", lambda name: zipfile.ZipFile(tmp_path / f"{name}.zip"))
    monkeypatch.setattr(demo, "NAMES", ("demo/mine",))
    split = demo.load("demo/mine").split("test")
    assert split.keys == tuple(f"test/{name}/{i:04d}.webp" for i, name in enumerate(("a", "a", "b", "b")))
    np.testing.assert_array_equal(pixels(split, 3), pictures[5])


def test_a_package_that_is_another_is_refused(tmp_path):
    (tmp_path / "set-1.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"has SHA-512 .* not c29tZQ==; delete it"):
        icons.fetch("https://registry.npmjs.org/set/-/set-1.tgz", "c29tZQ==", tmp_path)


def test_an_alias_shows_its_icon_and_a_mirrored_one_nothing():
    icon_set = {
        "icons": {"cat": {"body": "<path/>"}, "wide": {"body": "<g/>", "width": 20}},
        "aliases": {"kitten": {"parent": "cat"}, "mirrored": {"parent": "cat", "hFlip": True}},
        "height": 32,
    }
    assert icons.svg(icon_set, "kitten") == icons.svg(icon_set, "cat")
    assert 'viewBox="0 0 16 32"' in icons.svg(icon_set, "cat") and 'viewBox="0 0 20 32"' in icons.svg(icon_set, "wide")
    assert icons.svg(icon_set, "mirrored") is None and icons.svg(icon_set, "dog") is None
