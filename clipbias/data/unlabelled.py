"""Images without labels, which forms learn a tuned model's predictions on: those of training and of validation."""

import dataclasses

import numpy as np

from clipbias.data.dataset import Dataset, Split
from clipbias.data.folder import divide
from clipbias.data.protocols import validation_outside_test

# Share of the images that nothing is fitted on. Names tell which, since the rule of `data.held_out` reads labels.
HELD_BACK = 0.2


def unlabelled_images(dataset: Dataset, evaluated: Split) -> Split | None:
    """Training and validation images that are not those of `evaluated`, labels 0; `None` where there are none."""
    train = dataset.splits.get("train")
    parts = [None if train is evaluated else train, validation_outside_test(evaluated, dataset.splits.get("val"))]
    splits = [part for part in parts if part is not None]
    if not splits:
        return None
    return without_labels(splits[0] if len(splits) == 1 else _joined(*splits))


def without_labels(images: Split) -> Split:
    """The same images, all with label 0."""
    return dataclasses.replace(images, labels=np.zeros(len(images), np.int32))


def divide_unlabelled(images: Split, *, certified: bool = False) -> tuple[Split, Split, Split]:
    """Images to fit on, images that are held back, and with `certified` so many again for a certificate."""
    shares = (HELD_BACK, HELD_BACK if certified else 0.0)
    images = without_labels(images)
    fitted, held_back, rest = (images.subset(part) for part in divide(images, shares))
    return fitted, held_back, rest


def _joined(first: Split, second: Split) -> Split:
    """The images of two splits of a dataset; an image that is in both comes once."""
    second = second.without(first)

    def read(index: int) -> bytes:
        return first.read(index) if index < len(first) else second.read(index - len(first))

    labels = np.concatenate([first.labels, second.labels])
    if first.source == second.source:
        return dataclasses.replace(first, keys=(*first.keys, *second.keys), labels=labels, read=read)
    contents = first.contents if first.contents is second.contents else None
    keys = (*first.paths, *second.paths)
    return dataclasses.replace(first, keys=keys, labels=labels, read=read, source="", contents=contents)
