"""Miniatures of the fifteen benchmark datasets: a few tiny images in the exact folder layout and file naming.

Besides, records as tensorflow-datasets prepares them, and the few-shot draw in plain Python.
"""

import io
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

from clipbias.data import Dataset
from clipbias.data.catalog import ENTRIES
from tests.data.pictures import encoded, picture, write

WNIDS = ("n01440764", "n01443537", "n03773504", "n04008634")
WNID_NAMES = ("tench", "goldfish", "missile", "missile")

# Class names and how the images of each class are called; {n} counts over the whole dataset.
NAMED = {
    "caltech101": [("Faces", "face"), ("Leopards", "leopard"), ("accordion", "accordion")],
    "oxford_pets": [("Abyssinian", "abyssinian"), ("american_bulldog", "american_bulldog"), ("beagle", "beagle")],
    "stanford_cars": [("", "2000 AM General Hummer SUV"), ("", "2012 Ram C/V Cargo Van Minivan"), ("", "2012 BMW X6")],
    "oxford_flowers": [("", "pink primrose"), ("", "bird of paradise"), ("", "colt's foot")],
    "food101": [("apple_pie", "apple_pie"), ("cheese_plate", "cheese_plate"), ("cheesecake", "cheesecake")],
    "sun397": [("a/abbey", "abbey"), ("a/apse/indoor", "indoor apse"), ("y/youth_hostel", "youth_hostel")],
    "dtd": [("banded", "banded"), ("polka-dotted", "polka-dotted"), ("zigzagged", "zigzagged")],
    "eurosat": [("AnnualCrop", "Annual Crop Land"), ("Forest", "Forest"), ("SeaLake", "Sea or Lake")],
    "ucf101": [("Apply_Eye_Makeup", "Apply_Eye_Makeup"), ("Yo_Yo", "Yo_Yo"), ("Y_M_C_A", "Y_M_C_A")],
}
PLAIN = [("bird", "bird"), ("cat", "cat"), ("dog", "dog")]  # of an entry that has no line in these tables
FILE_NAMES = {
    "caltech101": "{folder}/image_{n:04d}.jpg",
    "oxford_pets": "{folder}_{n}.jpg",
    "stanford_cars": "cars_{place}/{n:05d}.jpg",
    "oxford_flowers": "image_{n:05d}.jpg",
    "food101": "{folder}/{n:07d}.jpg",
    "sun397": "{folder}/sun_{n:016x}.jpg",
    "dtd": "{folder}/{folder}_{n:04d}.jpg",
    "eurosat": "{folder}/{folder}_{n}.jpg",
    "ucf101": "{folder}/v_{compact}_g{n:02d}_c01.jpg",
}
AIRCRAFT = ("707-320", "737-800", "A340-200", 'Il-76 "TD"')
COUNTS = {"train": 5, "val": 3, "test": 2}
Record = tuple[bytes, str, str]  # image, label name, identifier


def make(root: Path, name: str) -> Path:
    """Writes the miniature called `name` below `root`; returns its own folder."""
    entry = ENTRIES[name]
    folder = root / entry.folder
    if entry.layout == "split file":
        _with_split_file(folder, name)
    elif entry.layout == "variant lists":
        _aircraft(folder)
    else:
        _imagenet(folder / entry.image_folder, entry.layout)
        text = "".join(f"{identifier} {name}\n" for identifier, name in zip(WNIDS, WNID_NAMES, strict=True))
        (folder / "classnames.txt").write_text(text)
    return folder


def make_all(root: Path) -> Path:
    """Writes those of the whole catalogue; returns `root`."""
    for name in ENTRIES:
        make(root, name)
    return root


def split_content(name: str) -> dict[str, list]:
    """The content of the miniature's split file. Classes come interleaved, starting with the last one."""
    content = {}
    number = 0
    for split in ENTRIES[name].sizes:
        content[split] = []
        for _ in range(COUNTS[split]):
            for label in (2, 0, 1):
                number += 1
                label_folder, class_name = NAMED.get(name, PLAIN)[label]
                path = FILE_NAMES.get(name, "{folder}/{n}.jpg").format(
                    folder=label_folder,
                    n=number,
                    place="test" if split == "test" else "train",
                    compact=label_folder.replace("_", ""),
                )
                content[split].append([path, label, class_name])
    return content


def _with_split_file(folder: Path, name: str) -> None:
    content = split_content(name)
    for number, item in enumerate(item for items in content.values() for item in items):
        write(folder / ENTRIES[name].image_folder / item[0], seed=number, height=10, width=12)
    (folder / ENTRIES[name].split_file).write_text(json.dumps(content, indent=4))


def _aircraft(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in AIRCRAFT))
    number = 0
    for split, count in COUNTS.items():
        lines = []
        for index in range(count * len(AIRCRAFT)):
            number += 1
            lines.append(f"{number:07d} {AIRCRAFT[index % len(AIRCRAFT)]}\n")
            write(folder / "images" / f"{number:07d}.jpg", seed=number, height=10, width=12)
        (folder / f"images_variant_{split}.txt").write_text("".join(lines))


def _imagenet(images: Path, layout: str) -> None:
    number = 0
    for label, identifier in enumerate(WNIDS):
        places = {"train": COUNTS["train"], "val": COUNTS["val"]} if layout == "imagenet" else {"": COUNTS["test"]}
        for place, count in places.items():
            for index in range(count):
                number += 1
                if place == "train":
                    path = f"train/{identifier}/{identifier}_{100 - index}.JPEG"
                elif place == "val":
                    path = f"val/{identifier}/ILSVRC2012_val_{number:08d}.JPEG"
                elif layout == "numbered folders":
                    path = f"{label}/{number:040x}.jpeg"
                else:
                    path = f"{identifier}/0.{number:06d}_snake _ rope_0.{number}.jpg"
                write(images / path, seed=number, height=10, width=12)


def assert_same(first: Dataset, other: Dataset) -> None:
    """Names, and every image with its label."""
    assert first.class_names == other.class_names and first.template == other.template
    assert first.splits.keys() == other.splits.keys()
    for name, split in first.splits.items():
        twin = other.splits[name]
        assert split.keys == twin.keys and (split.labels == twin.labels).all()
        assert [split.read(index) for index in range(len(split))] == [twin.read(index) for index in range(len(twin))]


def plain_draw(train: list, val: list, shots: int, seed: int) -> list[list]:
    """Few-shot draws of lists of items `(path, label, ...)`, one after the other, from one generator."""
    stream = random.Random(seed)
    drawn = []
    for items, count in ((train, shots), (val, min(4, shots))):
        groups: dict[int, list] = {}
        for item in items:
            groups.setdefault(item[1], []).append(item)
        drawn.append([x for g in groups.values() for x in (stream.sample(g, count) if len(g) >= count else g)])
    return drawn


def prepare(
    data_dir: Path,
    name: str,
    label_names: list[str],
    splits: Mapping[str, Iterable[Record]],
    *,
    id_feature: str | None,
    config: str | None = None,
    version: str = "1.0.0",
    file_format: str = "array_record",
) -> Path:
    """Writes a dataset as TFDS prepares it, under a stock builder's name, without tensorflow; returns its folder."""
    import tensorflow_datasets as tfds

    class Stock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=version)] if config else []

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=label_names)}
            if id_feature:
                features[id_feature] = tfds.features.Text()
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(records) for split, records in splits.items()}

        def _generate_examples(self, records):
            for number, (image, label, identifier) in enumerate(records):
                example = {"image": io.BytesIO(image), "label": label}
                yield f"{number}", example | ({id_feature: identifier} if id_feature else {})

    Stock.name = name
    Stock.VERSION = tfds.core.Version(version)
    builder = Stock(data_dir=str(data_dir), file_format=file_format)
    builder.download_and_prepare()
    return Path(builder.data_dir)


def image(seed: int) -> bytes:
    return encoded(picture(seed, 8, 9), "JPEG")
