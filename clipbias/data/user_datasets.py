"""A user's pictures as a dataset: from memory, or a folder, a table or a Hugging Face dataset as it is."""

import os
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from clipbias.checks import shown
from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data import sources
from clipbias.data.dataset import Dataset, Split
from clipbias.data.folder import SPLIT_OF, complete_splits
from clipbias.data.hub_dataset import from_hub_dataset, is_hub_dataset
from clipbias.data.user_images import Labels, Pictures, labelled_split, names_of_labels
from clipbias.errors import ClipbiasError
from clipbias.io import data_path

TABLES = (".csv", ".jsonl")
T = TypeVar("T")


def from_arrays(
    pictures: Pictures,
    labels: Labels,
    class_names: Sequence[str] | None = None,
    *,
    splits: Sequence[str] | None = None,
    template: str = DEFAULT_TEMPLATE,
    name: str = "own pictures",
) -> Dataset:
    """A dataset of pictures in memory or in files, for `fit`, `evaluate` and studies.

        pets = data.from_arrays(pictures, labels, ["cat", "dog"])

    Args:
      pictures: paths, PIL images, uint8 arrays `[h, w, 3]`, or an array `[n, h, w, 3]`.
      labels: the class of each, by number or by name, `[n]`.
      class_names: the `C` classes; `None` takes the names of labels, sorted.
      splits: "train", "val" or "test" for each picture, `[n]`; `None` divides each class as a folder's is, 50 % for
        training, 20 % for validation, 30 % for tests.
      template: the text around a class name, with `{}` for it.
      name: of the dataset, in results.

    Raises:
      ClipbiasError: pictures, labels, classes or splits do not fit, or no picture is for training.
    """
    names = tuple(names_of_labels(labels) if class_names is None else class_names)
    if len(set(names)) < len(names):
        raise ClipbiasError(f"class_names {shown(list(names))} holds a name twice; give each class a name of its own.")
    whole = labelled_split(pictures, labels, names)
    return Dataset(name, names, template, complete_splits(_divided(whole, splits), name))


def _divided(whole: Split, splits: Sequence[str] | None) -> dict[str, Split]:
    if splits is None:
        return {"all": whole}
    if isinstance(splits, str) or len(splits) != len(whole):
        raise ClipbiasError(
            f"splits is {shown(splits)}; give one of train, val and test for each of {len(whole)} images."
        )
    unknown = [split for split in splits if split not in SPLIT_OF]
    if unknown:
        raise ClipbiasError(f"the split of an image is {shown(unknown[0])}; it must be train, val or test.")
    of_each = np.asarray([SPLIT_OF[split] for split in splits])
    if "train" not in of_each:
        raise ClipbiasError("no image is for training; give some the split 'train'.")
    return {split: whole.subset(np.flatnonzero(of_each == split)) for split in dict.fromkeys(of_each.tolist())}


def open_images(source: T) -> T | Dataset:
    """A dataset where it is given by its name, by the path of a folder or a table, or as Hugging Face's; else `source`.

    Raises:
      ClipbiasError: there is no such dataset, folder or table.
    """
    if is_hub_dataset(source):
        return from_hub_dataset(source)
    if isinstance(source, os.PathLike) or (isinstance(source, str) and not sources.is_name(source)):
        path = data_path(source)
        if path.is_dir():
            return sources.load("folder", data_dir=path)
        if path.suffix.lower() in TABLES:
            return sources.load("csv", data_dir=path)
    return sources.load(source) if isinstance(source, str) else source
