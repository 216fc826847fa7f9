"""The demo datasets: what they promise to whoever loads them, and that their drawing code still draws them."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from clipbias.data import demo
from clipbias.data.dataset import Split
from clipbias.errors import ClipbiasError
from tools.demo import datasets

# SHA-256 over the pixels of train, val and test, taken when each read drew its image anew.
DIGESTS = {
    "demo/digits": "9f9dca371c6157b6",
    "demo/shapes": "571ab1aa3346a08e",
    "demo/textures": "ebefb3130825a5c4",
}


def pixels(split: Split, index: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(split.read(index))))


@pytest.mark.parametrize("name", demo.NAMES)
def test_every_pixel_is_the_one_that_was_drawn(name):
    dataset, digest = demo.load(name), hashlib.sha256()
    for split in dataset.splits.values():
        for index in range(len(split)):
            image = pixels(split, index)
            assert image.shape == (64, 64, 3) and image.dtype == np.uint8
            digest.update(image.tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", demo.NAMES)
def test_the_drawing_code_draws_what_is_shipped(name):
    dataset, drawn = demo.load(name), datasets.DATASETS[name.removeprefix("demo/")]()
    assert (dataset.class_names, dataset.template) == (drawn.class_names, drawn.template)
    expected = {split_name: [] for split_name in datasets.SPLIT_SIZES}
    for key, *place in drawn.images():
        expected[place[0]].append((key, *place))
    assert list(dataset.splits) == list(expected)
    for split_name, split in dataset.splits.items():
        keys, _, labels, _ = zip(*expected[split_name], strict=True)
        assert split.keys == keys and split.labels.tolist() == list(labels)
        for index in range(0, len(split), 37):
            np.testing.assert_array_equal(pixels(split, index), drawn.image(*expected[split_name][index][1:]))


def test_packing_keeps_every_pixel(tmp_path, monkeypatch):
    drawn = datasets.sketches()
    monkeypatch.setattr(datasets, "SPLIT_SIZES", {"train": 1, "test": 1})
    images = [datasets.compress("shapes", place, method=0) for _, *place in drawn.images()]
    for name in ("shapes.zip", "again.zip"):
        datasets.pack(tmp_path / name, drawn, images)
    assert (tmp_path / "shapes.zip").read_bytes() == (tmp_path / "again.zip").read_bytes()
    monkeypatch.setattr(demo, "_archive", lambda name: zipfile.ZipFile(tmp_path / f"{name}.zip"))
    split = demo.load("demo/shapes").split("test")
    assert split.keys == tuple(f"test/{name}/{label:04d}.png" for label, name in enumerate(drawn.class_names))
    np.testing.assert_array_equal(pixels(split, 3), drawn.image("test", 3, 3))


@pytest.mark.parametrize("name", demo.NAMES)
def test_every_split_has_every_class_equally_often(name):
    dataset = demo.load(name)
    assert len(dataset.class_names) == len(set(dataset.class_names)) == 10
    for split_name, size in datasets.SPLIT_SIZES.items():
        counts = np.bincount(dataset.splits[split_name].labels, minlength=10)
        np.testing.assert_array_equal(counts, np.full(10, size))


def test_no_image_is_there_twice():
    splits = [split for name in demo.NAMES for split in demo.load(name).splits.values()]
    images = [split.read(index) for split in splits for index in range(len(split))]
    assert len(set(images)) == len(images) == 10 * 63 * 3


def test_digits_are_the_scans_of_scikit_learn():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    split = demo.load("demo/digits").splits["test"]
    image = pixels(split, 200)[..., 0].astype(float)
    # Averages of 8 x 8 blocks undo the enlargement closely enough to find the scan again.
    small = image.reshape(8, 8, 8, 8).mean((1, 3)) * (16 / 255)
    distance = np.abs(bunch.images - small).mean((1, 2))
    assert bunch.target[distance.argmin()] == split.labels[200]
    assert distance.min() < 1.2 < np.median(distance)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ClipbiasError, match=r"demo/flowers.*demo/digits"):
        demo.load("demo/flowers")
