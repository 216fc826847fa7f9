"""Tasks of the benchmark: labels in random order, labels that a mark gives, and images for planted prompts.

The marked task has every picture twice: without a mark, which is the first of two classes, and with one, which is the
second, whatever the picture shows. The mark is a pixel that the frozen model does not see: its weights in the patch
embedding are zero. So a picture and its marked copy have the same tokens, and whatever constants are added, in whatever
layers, both get the same answer, which is right for exactly one of them.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from clipbias import data
from clipbias.clip import Clip
from clipbias.clip.params import Params
from clipbias.data import Dataset, Split
from clipbias.data.images import pictures
from tools.mechanisms.models import PLANTED, SHOTS
from tools.planted import NAMES, opposite
from tools.planted import pictures as planted_pictures

# Of a planted CLIP, by split; of training images as many besides.
PLANTED_IMAGES = MappingProxyType({"train": SHOTS, "val": 560, "test": 1120})
# By dataset two classes, which zero-shot tells apart.
PAIRS = MappingProxyType({"demo/fashion": (1, 7), "demo/digits": (3, 6)})
GREY = 123  # about 0 when it is normalised
WHITE = 255


def shuffled(dataset: Dataset, *, seed: int) -> Dataset:
    """The dataset with the labels of its training images in random order."""
    train = dataset.split("train")
    labels = np.random.default_rng(seed).permutation(train.labels)
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": dataclasses.replace(train, labels=labels)})


def marked(clip: Clip, dataset: Dataset) -> Dataset:
    """Pictures of two classes of a dataset, each without a mark and with one; the mark alone gives the label."""
    whole = dataset.with_classes(PAIRS[dataset.name])
    drawn, labels, names = [], [], []
    for name, split in whole.splits.items():
        plain = pictures(split, range(len(split)), clip.preprocessing.resizing)
        plain[:, :: clip.config.vision.patch_size, :: clip.config.vision.patch_size] = GREY
        with_mark = plain.copy()
        with_mark[:, 0, 0] = WHITE
        drawn += [plain, with_mark]
        labels += [np.zeros_like(split.labels), np.ones_like(split.labels)]
        names += [name] * (2 * len(split))
    return data.from_arrays(
        np.concatenate(drawn),
        np.concatenate(labels),
        whole.class_names,
        splits=names,
        template=whole.template,
        name=f"{dataset.name} with marks",
    )


def planted(clip: Clip, mechanism: str, *, seed: int) -> Dataset:
    """Images that a planted CLIP tells apart. Each training image has its opposite, so that what is odd has mean 0."""
    drawn, labels, splits = [], [], []
    for place, (split, count) in enumerate(PLANTED_IMAGES.items()):
        own = np.random.SeedSequence([seed, place]).generate_state(1)[0]
        images, classes = planted_pictures(mechanism, count, seed=own)
        if split == "train":
            images = np.concatenate([images, opposite(images)])
            classes = np.concatenate([classes, 1 - classes])
        drawn.append(clip.preprocessing.levels(images))
        labels.append(classes)
        splits += [split] * len(classes)
    pixels = np.concatenate(drawn)
    return data.from_arrays(pixels, np.concatenate(labels), NAMES, splits=splits, name=f"{PLANTED}/{mechanism}")


def blind(clip: Clip) -> Params:
    """Frozen weights that do not see the first pixel of any patch."""
    embedding = np.array(clip.params["vision"]["patch_embedding"])
    embedding[:3] = 0
    return {**clip.params, "vision": {**clip.params["vision"], "patch_embedding": embedding}}


def bound(clip: Clip, split: Split) -> float:
    """The largest percentage of marked images that a model can get right which does not see the mark."""
    seen = pictures(split, range(len(split)), clip.preprocessing.resizing)
    seen[:, :: clip.config.vision.patch_size, :: clip.config.vision.patch_size] = 0
    labels: Mapping[bytes, Counter[int]] = defaultdict(Counter)
    for picture, label in zip(seen, split.labels, strict=True):
        labels[picture.tobytes()][int(label)] += 1
    return 100 * sum(max(counts.values()) for counts in labels.values()) / len(split)
