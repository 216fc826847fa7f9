"""Opens datasets by name, or from a user's pictures; a sweep opens all of its datasets before the first run."""

import contextlib
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from absl import logging

from clipbias.checks import check_class_names, check_text, shown
from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data import benchmark, catalog, demo, folder
from clipbias.data.dataset import Dataset, Split
from clipbias.data.files import examples
from clipbias.data.folder import SPLIT_OF, complete_splits, from_hub_dataset, is_hub_dataset
from clipbias.data.user_images import Labels, Pictures, check_no_table, image_list, label_array, names_of_labels
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.io import data_path, is_remote, shorten
from clipbias.sentences import counted

# Pictures of users.
USER_DATASETS = ("folder", "csv")


def names() -> tuple[str, ...]:
    """Returns every name that `load` takes, besides "tfds/" and a builder's name."""
    return (*USER_DATASETS, *demo.NAMES, *catalog.ENTRIES)


def is_name(name: str) -> bool:
    """Whether a string is the name of a dataset, not a path."""
    return name in names() or name.startswith(("demo/", "tfds/"))


def load(
    name: str, /, *, data_dir: str | os.PathLike | None = None, template: str | None = None, **options: Any
) -> Dataset:
    """Opens a dataset; images are read when they are used.

    | name | `data_dir` | options |
    | --- | --- | --- |
    | "demo/..." | | |
    | a catalogue name: "eurosat" | all datasets in CoOp's layout | |
    | "tfds/..." and a catalogue or builder name | TFDS's data folder | `split`, `split_dir` |
    | "folder" | one folder per class, optionally below train/ val/ test/, or images with metadata.jsonl | |
    | "csv" | a .csv or .jsonl file with path, label and optionally split | `class_names` |

    A template has one `{}`. Default: the dataset's template. Raises `ClipbiasError` for an unknown name or option, and
    for missing or malformed files.
    """
    check_text("the name of a dataset", name)
    if "name" in options:
        raise ClipbiasError("a dataset takes no option 'name'; see the table in clipbias.data.load.")
    try:
        # Shards first: on shared storage they are read faster than files.
        if data_dir is not None and is_name(name):
            from clipbias.data import tfds

            if (built := tfds.find_shards(name, data_path(data_dir))) is not None:
                return tfds.load_shards(built, template=template, **options)
        if name == "folder":
            # Metadata decide the classes where there are any: such a folder may also be divided by day or camera.
            if data_dir is not None and folder.has_metadata(data_path(data_dir)):
                return folder.load_metadata(data_path(data_dir), template=template, **options)
            return folder.load(data_dir, template=template, **options)
        if name == "csv":
            return folder.load_table(data_dir, template=template, **options)
        if name.startswith("tfds/"):
            from clipbias.data import tfds

            return tfds.load(name, data_dir, template=template, **options)
        if name in catalog.ENTRIES:
            return benchmark.load(catalog.ENTRIES[name], data_dir, template=template, **options)
        if name in demo.NAMES:
            return demo.load(name, template=template, **options)
    except TypeError as error:
        # Each source has its own options; Python checks them, and its message is put into words.
        if "unexpected keyword argument" not in str(error):
            raise
        option = str(error).rsplit("argument ", 1)[1]
        raise ClipbiasError(f"dataset {name} takes no option {option}; see the table in clipbias.data.load.") from error
    # A path with a typing error is no misspelt dataset.
    if os.sep in name and not name.startswith(("demo/", "tfds/")):
        raise ClipbiasError(f"there is no dataset and no folder {shorten(name)!r}; check the path.")
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names())}."
    raise ClipbiasError(f"there is no dataset {shorten(name)!r}; {hint}")


def describe_missing(dataset: Dataset, *, trains: bool) -> str | None:
    """Returns a sentence that says why a dataset lacks images for a run (that `trains`), or `None`."""
    needed = {"test": "evaluate on"} | ({"train": "train on"} if trains else {})
    for split, use in needed.items():
        if not len(dataset.splits.get(split, ())):
            content = ", ".join(f"{len(images)} {name}" for name, images in dataset.splits.items() if len(images))
            return f"{dataset.name} has no {split} images to {use} (it has {content or 'no image'}); add some."
    return None


def cautions_of_classes(dataset: Dataset) -> list[str]:
    """Says which classes have no training image, and which pictures are in two classes, or train and validate."""
    names = dataset.class_names
    empty = [names[label] for label in np.setdiff1d(np.arange(len(names)), dataset.split("train").labels)]
    missing = f"{dataset.name}: there is no training image of {examples(empty)}; add some, or leave such classes out."
    # Bytes are read only where sizes of files are equal, and not over a network. A whole table has a single mark.
    alike: dict[int | str, list[tuple[int, str, Split, int]]] = {}
    for name, split in dataset.splits.items():
        if split.upright and not is_remote(split.source):
            for row, (mark, label) in enumerate(zip(split.marks(), split.labels.tolist(), strict=False)):
                alike.setdefault(mark, []).append((label, name, split, row))
    first: dict[str, tuple[int, str]] = {}
    pairs = []
    # Paths by themselves and by contents: copies have other paths, and the benchmark's lists are not read.
    paths = {name: {path: path for path in split.paths} for name, split in dataset.splits.items()}
    for images in alike.values():
        if len({label for label, *_ in images}) == 1 and not {"train", "val"} <= {name for _, name, *_ in images}:
            continue
        for label, name, split, row in images:
            content = split.content(row)
            paths[name][content] = split.path(row)
            other, path = first.setdefault(content, (label, split.path(row)))
            if other != label:
                # Files of equal bytes that are no picture, as broken downloads leave them, are not compared.
                with contextlib.suppress(UnreadableImage):
                    split.image(row)
                    pairs.append(f"{path} ({names[other]}) and {split.path(row)} ({names[label]})")
    more = f", and {counted(len(pairs) - 1, 'more pair')}" if pairs[1:] else ""
    twice = [f"the same picture is in two classes: {pairs[0]}{more}; leave out all but one."] if pairs else []
    if shared := paths["train"].keys() & paths.get("val", {}).keys() - {""}:
        example = paths["val"][min(shared)]
        twice.append(
            f"validation images train, too, as {example} does; what they choose or calibrate promises too much."
        )
    return ([missing] if empty else []) + twice


def open_datasets(
    load: Callable[[str], Dataset], trains: Mapping[str, bool], *, skip: bool = False
) -> dict[str, Dataset]:
    """Opens all datasets of a sweep; `trains` says by name whether a run needs training images.

    With `skip`, unusable ones are left out with a warning, but not all. Raises `ClipbiasError` with a line for each.
    """
    datasets: dict[str, Dataset] = {}
    # All problems at once: a sweep of days should not stop at the second dataset after the first was corrected.
    problems: list[str] = []
    for name, needs_training in trains.items():
        try:
            dataset = load(name)
            problem = describe_missing(dataset, trains=needs_training)
        except ClipbiasError as error:
            problem = str(error)
        if problem is None:
            datasets[name] = dataset
            for caution in cautions_of_classes(dataset) if needs_training else ():
                logging.warning("%s", caution)
        else:
            problems.append(problem)
    if problems and not (skip and datasets):
        hint = "Fix it, or pass --config.on_missing=skip." if datasets else "Fix it."
        raise ClipbiasError("\n".join([*problems, f"No run was started. {hint}"]))
    for problem in problems:
        logging.warning("Left out: %s", problem)
    return datasets


TABLE_SUFFIXES = (".csv", ".jsonl")
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
    """Returns a dataset of pictures in memory or in files, for `fit`, `evaluate` and studies.

        pets = data.from_arrays(pictures, labels, ["cat", "dog"])

    Args:
      pictures: paths, PIL images, uint8 arrays `[h, w, 3]`, or an array `[n, h, w, 3]`.
      labels: class of each picture, as numbers or names, `[n]`.
      class_names: the `C` classes. Default: the sorted names of labels.
      splits: "train", "val" or "test" for each picture, `[n]`: there are no other splits. Default: 50 %, 20 % and 30 %
        of each class.

    Raises `ClipbiasError` if pictures, labels, classes or splits do not fit, or no picture is for training.
    """
    if class_names is not None:
        check_class_names(class_names)
    labels = label_array(labels)
    names = tuple(names_of_labels(labels) if class_names is None else class_names)
    # Labels by name would fit both classes. Only published lists, whose labels are numbers, repeat a name.
    if len(set(names)) < len(names):
        raise ClipbiasError(f"class_names {shown(list(names))} holds a name twice; give each class a name of its own.")
    # One list first, so that no image is in two splits.
    whole = image_list(pictures, labels, names)
    if splits is None:
        return Dataset(name, names, template, complete_splits({"all": whole}, name))
    if isinstance(splits, str) or len(splits) != len(whole):
        raise ClipbiasError(f"splits is {shown(splits)}; give one of train, val and test for all {len(whole)} images.")
    if unknown := [split for split in splits if split not in SPLIT_OF]:
        raise ClipbiasError(f"the split of an image is {shown(unknown[0])}; it must be train, val or test.")
    of_each = np.asarray([SPLIT_OF[split] for split in splits])
    if "train" not in of_each:
        raise ClipbiasError("no image is for training; give some the split 'train'.")
    parts = {split: whole.subset(np.flatnonzero(of_each == split)) for split in dict.fromkeys(of_each.tolist())}
    return Dataset(name, names, template, parts)


def open_images(given: T) -> T | Dataset:
    """Opens a dataset by name, by the path of a folder or table, or from Hugging Face's; returns others unchanged."""
    # Before paths: a `DatasetDict` is a mapping, and everything else stays as it is.
    check_no_table(given)
    if is_hub_dataset(given):
        return from_hub_dataset(given)
    if isinstance(given, os.PathLike) or (isinstance(given, str) and not is_name(given)):
        path = data_path(given)
        if path.is_dir():
            return load("folder", data_dir=path)
        if path.suffix.lower() in TABLE_SUFFIXES:
            return load("csv", data_dir=path)
    return load(given) if isinstance(given, str) else given
