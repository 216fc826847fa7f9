"""A user's images: one sub-folder per class, optionally below `train/`, `val/` and `test/`."""

import hashlib
import os

import numpy as np
from absl import logging

from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data import files
from clipbias.data.dataset import Dataset, Split
from clipbias.errors import ClipbiasError

# Names under which people keep each split, in order of preference.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
# Shares of a single-level folder, per class: those of the benchmark's own random splits.
VAL_SHARE = 0.2
TEST_SHARE = 0.3


def load(data_dir: str | os.PathLike | None, *, template: str | None = None) -> Dataset:
    """Reads a folder of class folders.

    Class names are the folder names, in Python's sort order. A missing split is made from the others by a rule that
    depends on the file names alone, and one logged line says so. A single level is divided 50/20/30 per class, and so
    is `train/` without the others. `train/` and `test/` hold out 20 % of `train/` for validation. `train/` and `val/`
    evaluate on `val/`. Raises `ClipbiasError` for no such folder, no class folder, a class without images, unreadable
    names.
    """
    root = files.existing_folder(data_dir, needed_for="dataset folder")
    roots = {}
    for split_name, candidates in SPLIT_FOLDERS.items():
        folders = [root / candidate for candidate in candidates if (root / candidate).is_dir()]
        if folders:
            roots[split_name] = folders[0]
    if "train" not in roots:
        if len(roots) > 0 and not set(files.sub_folders(root)) - {path.name for path in roots.values()}:
            raise ClipbiasError(f"{root} has {', '.join(sorted(roots))} but no train folder; add one.")
        roots = {}
    class_names = tuple(files.sub_folders(roots.get("train", root)))
    if not class_names:
        raise ClipbiasError(
            f"{roots.get('train', root)} has no sub-folder; expected one folder of images per class, "
            f"such as {roots.get('train', root) / 'cat' / 'one.jpg'}."
        )
    others: list[str] = []  # images whose format is not read
    splits = {}
    for split_name, place in (roots or {"all": root}).items():
        unknown = sorted(set(files.sub_folders(place)) - set(class_names))
        if unknown:
            raise ClipbiasError(
                f"{place} has the class folder {unknown[0]!r}, which the train folder has not; add it there or remove "
                "it."
            )
        keys: list[str] = []
        counts: list[int] = []
        prefix = "".join(f"{part}/" for part in place.relative_to(root).parts)
        files_by_class = files.image_files_in_each(place, class_names)
        for class_name, (names, left_out) in zip(class_names, files_by_class, strict=True):
            if not names and split_name in ("all", "train"):  # every class needs an image there
                why = f" that is read ({files.describe_others(left_out)})" if left_out else ""
                raise ClipbiasError(f"the class folder {place / class_name} has no image{why}; add some or remove it.")
            others += [f"{prefix}{class_name}/{file_name}" for file_name in left_out]
            keys += [f"{prefix}{class_name}/{file_name}" for file_name in names]
            counts.append(len(names))
        labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        splits[split_name] = files.split_of_files(root, keys, labels, upright=True)
    files.warn_of_others(root, others)
    splits = complete_splits(splits, str(root))
    return Dataset("folder", class_names, DEFAULT_TEMPLATE if template is None else template, splits)


def complete_splits(splits: dict[str, Split], place: str) -> dict[str, Split]:
    """Adds the missing ones of "train", "val" and "test", and logs how; "all" is divided into the three."""
    note = None
    if "all" in splits or set(splits) == {"train"}:
        whole = splits["all"] if "all" in splits else splits["train"]
        train, val, test = divide(whole, (VAL_SHARE, TEST_SHARE))
        splits = {"train": whole.subset(train), "val": whole.subset(val), "test": whole.subset(test)}
        note = "divided per class by file name"
    elif "val" not in splits:
        whole = splits["train"]
        train, val, _ = divide(whole, (VAL_SHARE, 0.0))
        splits = {**splits, "train": whole.subset(train), "val": whole.subset(val)}
        note = f"no val images: {VAL_SHARE:.0%} of train held out"
    elif "test" not in splits:
        splits = {**splits, "test": splits["val"]}
        note = "no test images: val is also the test set"
    if note:
        counts = ", ".join(f"{len(splits[key])} {key}" for key in ("train", "val", "test"))
        logging.info("%s: %s (%s).", place, note, counts)
    return splits


def divide(split: Split, shares: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of train, val and test parts, int64 and ascending, per class, fixed by a hash of each image's key.

    Every class keeps at least one training image; the two other parts get the rounded `shares`. The order in
    which the images are listed does not matter.
    """
    train: list[np.ndarray] = []
    val: list[np.ndarray] = []
    test: list[np.ndarray] = []
    digests = b"".join(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in split.keys)
    ranks = np.frombuffer(digests, ">u8").reshape(-1, 4).astype(np.uint64).T
    order = np.lexsort((*ranks[::-1], split.labels))  # by label, and in each by its digest as a number
    for indices in np.split(order, np.flatnonzero(np.diff(split.labels[order])) + 1):
        val_count = round(len(indices) * shares[0])
        test_count = round(len(indices) * shares[1])
        if val_count + test_count >= len(indices):
            val_count = 0
        test_count = min(test_count, len(indices) - 1)
        val.append(indices[:val_count])
        test.append(indices[val_count : val_count + test_count])
        train.append(indices[val_count + test_count :])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val)), np.sort(np.concatenate(test))
