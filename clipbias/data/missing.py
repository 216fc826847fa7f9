"""Opens the datasets of a sweep, and reports missing folders, splits and images before the first run."""

from collections.abc import Callable, Mapping

import numpy as np
from absl import logging

from clipbias.data.dataset import Dataset
from clipbias.errors import ClipbiasError

SHOWN = 5  # classes whose images are counted in a message


def describe_missing(dataset: Dataset, *, trains: bool) -> str | None:
    """Why a dataset cannot be used for a run, in a sentence; `None` if it can.

    Args:
      dataset: the opened dataset.
      trains: whether training images are needed besides test images.
    """
    needed = {"test": "evaluate on"} | ({"train": "train on"} if trains else {})
    for split, use in needed.items():
        if not len(dataset.splits.get(split, ())):
            present = [f"{name}: {_counts(dataset, name)}" for name, images in dataset.splits.items() if len(images)]
            content = ", ".join(present) or "no image"
            return f"{dataset.name} has no {split} images to {use} (it has {content}); add some."
    return None


def open_datasets(
    load: Callable[[str], Dataset], trains: Mapping[str, bool], *, skip: bool = False
) -> dict[str, Dataset]:
    """Opens all datasets of a sweep before its first run.

    Args:
      load: opens a dataset by its name.
      trains: `trains` of `describe_missing` by name.
      skip: leaves out datasets that cannot be used, with a warning; at least one must be left.

    Raises:
      ClipbiasError: datasets cannot be used; the message has a line for each.
    """
    datasets: dict[str, Dataset] = {}
    problems: list[str] = []
    for name, needs_training in trains.items():
        try:
            dataset = load(name)
            problem = describe_missing(dataset, trains=needs_training)
        except ClipbiasError as error:
            problem = str(error)
        if problem is None:
            datasets[name] = dataset
        else:
            problems.append(problem)
    if problems and not (skip and datasets):
        hint = "Fix it, or pass --config.on_missing=skip." if datasets else "Fix it."
        raise ClipbiasError("\n".join([*problems, f"No run was started. {hint}"]))
    for problem in problems:
        logging.warning("Left out: %s", problem)
    return datasets


def _counts(dataset: Dataset, split: str) -> str:
    """The images of a split by class: "cat 1, dog 1"."""
    counts = np.bincount(dataset.splits[split].labels, minlength=len(dataset.class_names))
    shown = [f"{dataset.class_names[label]} {counts[label]}" for label in np.flatnonzero(counts)]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more classes" if len(shown) > SHOWN else "")
