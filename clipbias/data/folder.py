"""A user's images: a folder per class (optionally below `train/`, `val/`, `test/`), a table, or a Hugging Face dataset.

A table is a CSV or JSON lines file, or a folder with `metadata.jsonl`.
"""

import csv
import dataclasses
import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from absl import logging

from clipbias.checks import check_class_names, shown
from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data import files
from clipbias.data.dataset import Dataset, Split, check_told_apart
from clipbias.data.user_images import check_names, is_missing
from clipbias.errors import ClipbiasError, ClipbiasWarning, UnreadableImage
from clipbias.io import data_path, parse_json, read_text
from clipbias.sentences import counted

# Common names of the splits' folders.
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_OF = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
# Shares of a single-level folder, per class: those of the benchmark's own random splits.
VAL_SHARE = 0.2
TEST_SHARE = 0.3


def load(data_dir: str | os.PathLike | None, *, template: str | None = None) -> Dataset:
    """Reads a folder of class folders; class names are the folder names, in Python's sort order.

    Raises `ClipbiasError` for a class without training images, and folders or images outside of this layout.
    """
    root = files.existing_folder(data_dir, needed_for="dataset folder")
    roots = _split_folders(root)
    # Images outside of all splits would be left out silently: a sign that "train" is a class here, or a folder
    # misplaced.
    if "train" in roots:
        beside = [name for name in files.sub_folders(root) if root / name not in roots.values()]
        for name, (images, _) in zip(beside, files.image_files_in_each(root, beside), strict=True):
            if images:
                raise ClipbiasError(
                    f"{root} has images in {name}/ beside {roots['train'].name}/, where they belong to no split; move "
                    f"them into {roots['train'].name}/{name}/ if that is a class, else out of the folder."
                )
    elif roots:
        # "test" or "val" without "train" are classes of these names, if other classes stand beside them.
        classes = set(files.sub_folders(root)) - {path.name for path in roots.values()}
        if not classes or classes & {name for path in roots.values() for name in files.sub_folders(path)}:
            raise ClipbiasError(f"{root} has {', '.join(sorted(roots))} but no train folder; add one.")
        roots = {}
    # The training folder decides the classes, since a class without training images cannot be learned.
    train = roots.get("train", root)
    class_names = tuple(files.sub_folders(train))
    check_told_apart({name: str(train / name) for name in class_names}, "the folder")
    if not class_names:
        raise ClipbiasError(f"{train} has no sub-folder; expected a folder per class, such as {train / 'cat/one.jpg'}.")
    unread: list[str] = []  # images whose format is not read
    splits = {}
    for split_name, place in (roots or {"all": root}).items():
        if unknown := sorted(set(files.sub_folders(place)) - set(class_names)):
            raise ClipbiasError(
                f"{place} has the class folder {unknown[0]!r}, which the train folder has not; add or remove it."
            )
        keys: list[str] = []
        labels: list[int] = []
        prefix = "".join(f"{part}/" for part in place.relative_to(root).parts)
        if split_name not in ("all", "train"):
            _check_has_labels(place)
        # A class may have no folder of test images.
        for class_name, names, left_out in _class_folders(place, needed=split_name in ("all", "train")):
            unread += [f"{prefix}{class_name}/{file_name}" for file_name in left_out]
            keys += [f"{prefix}{class_name}/{file_name}" for file_name in names]
            labels += [class_names.index(class_name)] * len(names)
        splits[split_name] = files.split_of_files(root, keys, np.asarray(labels, np.int32), upright=True)
    files.warn_of_others(root, unread)
    splits = complete_splits(splits, str(root))
    return Dataset("folder", class_names, DEFAULT_TEMPLATE if template is None else template, splits)


def _split_folders(root: Path) -> dict[str, Path]:
    """Returns the folder of each split. Raises `ClipbiasError` for two folders of one split."""
    places: dict[str, Path] = {}
    present = files.sub_folders(root)
    for split_name, candidates in SPLIT_FOLDERS.items():
        # "Train" may also be a class, such as in pictures of vehicles: it is a split if it has folders or metadata.
        folders = [root / name for name in present if name.lower() in candidates]
        folders = [
            place for place in folders if place.name in candidates or files.sub_folders(place) or _metadata_files(place)
        ]
        if len(folders) > 1:
            raise ClipbiasError(
                f"{root} has {folders[0].name}/ and {folders[1].name}/, which both hold {split_name} images; merge or "
                "remove one."
            )
        if folders:
            places[split_name] = folders[0]
    return places


def _class_folders(place: Path, *, needed: bool) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields each class with its images and pictures that are not read. Raises for a class without `needed` images."""
    names = files.sub_folders(place)
    for name, (images, left_out) in zip(names, files.image_files_in_each(place, names), strict=True):
        if needed and not images:
            why = f" that is read ({files.describe_others(left_out)})" if left_out else ""
            raise ClipbiasError(f"the class folder {place / name} has no image{why}; add some or remove it.")
        yield name, images, left_out


def _check_has_labels(place: Path) -> None:
    """Raises `ClipbiasError` for pictures in a split folder without class folders and metadata."""
    if not files.sub_folders(place) and (images := files.image_files(place)[0]):
        raise ClipbiasError(
            f"{place} has {counted(len(images), 'picture')}, but neither class folders nor a {METADATA[0]}; add one."
        )


def complete_splits(splits: dict[str, Split], place: str) -> dict[str, Split]:
    """Adds missing splits, and logs the rule."""
    # "all" and a lone "train" are divided 50/20/30 per class. Without "val", 20 % of "train" are held out; without
    # "test", "val" is also the test set.
    note = None
    # Shares are those of the benchmark's random splits (`VAL_SHARE`, `TEST_SHARE`).
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
    """Divides each class into train, val and test indices, int64, ascending; `shares` are those of val and test."""
    # By a hash of each key: the parts depend on names alone, and neither on the order of the list nor on a seed.
    parts: list[list[np.ndarray]] = []  # of each class: val, test, train
    digests = b"".join(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in split.keys)
    ranks = np.frombuffer(digests, ">u8").reshape(-1, 4).astype(np.uint64).T
    order = np.lexsort((*ranks[::-1], split.labels))  # by label, then by digest as a number
    for indices in np.split(order, np.flatnonzero(np.diff(split.labels[order])) + 1):
        val_count = round(len(indices) * shares[0])
        test_count = round(len(indices) * shares[1])
        # A class of two images trains and tests; it has none to validate.
        if val_count + test_count >= len(indices):
            val_count = 0
        test_count = min(test_count, len(indices) - 1)
        parts.append(np.split(indices, [val_count, val_count + test_count]))
    val, test, train = (np.sort(np.concatenate(part)) for part in zip(*parts, strict=True))
    return train, val, test


# Lists of images.

METADATA = ("metadata.jsonl", "metadata.csv")

MAX_LABEL_DIGITS = 10  # longer labels of digits are names

TableRow = tuple[str, str, str, str]  # path, label, split, place of the row


def load_table(
    data_dir: str | os.PathLike | None, *, template: str | None = None, class_names: Sequence[str] | None = None
) -> Dataset:
    """Reads a table of images, `path,label[,split]`: a `.csv` with a header line, or a `.jsonl`.

    Paths are relative to its folder, and below it. `class_names` are those of integer labels 0, 1, ...; by default the
    sorted labels are the names. Raises `ClipbiasError` for a row that cannot be read so.
    """
    if data_dir is None:
        raise ClipbiasError("dataset csv needs data_dir, the .csv or .jsonl file that lists the images.")
    path = data_path(data_dir)
    if not path.is_file():
        raise ClipbiasError(f"dataset csv: there is no file {path}; data_dir must name the .csv or .jsonl file.")
    return _dataset("csv", path.parent, list(_rows(path, "path", "")), template, class_names, str(path))


def has_metadata(folder: Path) -> bool:
    """Whether `folder` or a split folder in it has a `metadata.jsonl` or `metadata.csv`."""
    if _metadata_files(folder):
        return True
    present = files.sub_folders(folder) if folder.is_dir() else []
    return any(_metadata_files(folder / name) for name in present if name.lower() in SPLIT_OF)


def _metadata_files(folder: Path) -> list[Path]:
    with files.readable(folder):
        return [folder / name for name in METADATA if (folder / name).is_file()]


def load_metadata(folder: Path, *, template: str | None = None, class_names: Sequence[str] | None = None) -> Dataset:
    """Reads Hugging Face's image folder: `metadata.jsonl` with `file_name` and label, in it or in split folders.

    A split folder without metadata has class folders. A row's split is its "split", else the split folder that holds
    the image, if all listed images lie in such folders.

    Raises `ClipbiasError` for a folder or table that cannot be read so, and where both splits of a row contradict each
    other. Warns of pictures that no metadata lists.
    """
    table = _with_splits_of_folders([row for path in _metadata_files(folder) for row in _rows(path, "file_name", "")])
    listed = {_top(image) for image, *_ in table}
    places = _split_folders(folder)
    # Without training images in a folder of their own, "test" may be any folder: its pictures are then unlisted.
    are_splits = "train" in {*places, *(SPLIT_OF.get(top.lower()) for top in listed)}
    from_class_folders: list[TableRow] = []
    for split_name, place in places.items():
        if metadata := _metadata_files(place):
            for path in metadata:
                rows = _rows(path, "file_name", split_name)
                table += [(f"{place.name}/{image}", label, split, row) for image, label, split, row in rows]
        elif are_splits and place.name not in listed:  # the metadata beside the folder may list its images
            _check_has_labels(place)
            for class_name, images, _ in _class_folders(place, needed=split_name == "train"):
                from_class_folders += [
                    (f"{place.name}/{class_name}/{image}", class_name, split_name, str(place / class_name))
                    for image in images
                ]
    table += from_class_folders
    # A split of another name than its folder is meant, as validation images in train/ are, unless that split has a
    # folder, too: then test images would train, or training images test.
    with_folders = {_split_of_folder(image) for image, *_ in table}
    for image, _, split, row in table if None not in with_folders else ():
        if split in with_folders and split != _split_of_folder(image):
            raise ClipbiasError(
                f"{row}: the split of {image} is {split}, but it lies in {_top(image)}/ beside a folder of {split} "
                "images; correct one of both."
            )
    trained = {label for _, label, split, _ in table if split == "train"}
    for _, label, split, row in table if from_class_folders and trained else ():
        if label not in trained:
            raise ClipbiasError(
                f"{row}: no training image has the class {label!r} of these {split} images; the training images' "
                f"classes are {shown(sorted(trained))}."
            )
    dataset = _dataset("folder", folder, table, template, class_names, str(folder))
    _warn_of_unlisted(folder, {image for image, *_ in table})
    return dataset


def _top(image: str) -> str:
    """Returns the first folder of a path, or ""."""
    return image.rpartition("/")[0].partition("/")[0]


def _split_of_folder(image: str) -> str | None:
    return SPLIT_OF.get(_top(image).lower())


def _with_splits_of_folders(table: list[TableRow]) -> list[TableRow]:
    """Adds the splits of the folders train/, test/, … to rows without a split, where these folders are splits."""
    splits = [_split_of_folder(image) for image, *_ in table]
    names = sorted({split for split in splits if split})
    # One such folder among others may be a class, two are none.
    if None in splits and len(names) < 2:
        return table
    split_rows: list[TableRow] = []
    for (image, label, split, row), of_folder in zip(table, splits, strict=True):
        if not split and not of_folder:
            raise ClipbiasError(
                f"{row}: {image} lies outside of the folders of {' and '.join(names)} images and so has no split; "
                "move it into one, or give every image a split."
            )
        split_rows.append((image, label, split or of_folder or "", row))
    return split_rows


def _warn_of_unlisted(folder: Path, listed: set[str]) -> None:
    images, others = files.image_files(folder)
    if left_out := [image for image in images if image not in listed]:
        warnings.warn(
            f"{folder}: {counted(len(left_out), 'picture')} without a row in the metadata "
            f"{'is' if len(left_out) == 1 else 'are'} left out ({files.examples(left_out)}); add rows, or move such "
            "pictures elsewhere.",
            ClipbiasWarning,
            stacklevel=4,
        )
    files.warn_of_others(folder, [image for image in others if image not in listed])


def _rows(path: Path, path_column: str, split_name: str) -> Iterator[TableRow]:
    for number, record in _records(path):
        place = f"{path}, line {number}"
        for column in (path_column, "label"):
            if is_missing(record.get(column)):
                columns = ", ".join(key for key in record if key)
                raise ClipbiasError(f"{place}: no value for {column!r}; the columns are {columns}.")
        image = files.check_relative(str(record[path_column]), listed_in=f"{place},")
        split = str(record.get("split") or split_name)
        if split and split not in SPLIT_OF:
            raise ClipbiasError(f"{place}: the split is {split!r}; it must be train, val or test.")
        yield image, _label_text(record["label"], place), SPLIT_OF.get(split, ""), place


def _label_text(label: object, place: str) -> str:
    # Python counts True as 1, and programs that know missing values write 1.0.
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise ClipbiasError(f"{place}: the label is {shown(label)}; it must be a name or a whole number.")
    if isinstance(label, int) and label < 0:
        raise _no_class(place, label)
    return str(label).strip()


def _no_class(place: str, label: object) -> ClipbiasError:
    return ClipbiasError(f"{place} has the label {label}, which is no class; leave such rows out.")


def _records(path: Path) -> Iterator[tuple[int, Mapping]]:
    # CSV may have line breaks inside quotes, so that the reader counts lines; JSON lines have none.
    text = read_text(path)
    if path.suffix.lower() != ".jsonl":
        # Spreadsheets separate columns by semicolons or tabs where a comma stands in numbers.
        separator = max(",;\t|", key=text.partition("\n")[0].count)
        # People write a space behind a comma; before a quote it would make the quote a part of the text.
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        try:
            columns = list(reader.fieldnames or ())
            if repeated := [column for column in columns if column and columns.count(column) > 1]:
                raise ClipbiasError(f"{path} has several columns {repeated[0]!r}; keep one.")
            for record in reader:
                if None in record:
                    raise ClipbiasError(
                        f"{path}, line {reader.line_num}: there are more values than columns; put a text with "
                        f"{separator!r} in quotes."
                    )
                yield reader.line_num, record
        except csv.Error as error:
            raise ClipbiasError(f"{path}, line {reader.line_num}: not a line of CSV ({error}).") from error
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ClipbiasError(f"{path}, line {number}: {error}.") from error
        if not isinstance(record, dict):
            raise ClipbiasError(f"{path}, line {number}: expected an object with path and label, found {line[:40]!r}.")
        yield number, record


def _dataset(
    name: str, root: Path, table: list[TableRow], template: str | None, class_names: Sequence[str] | None, place: str
) -> Dataset:
    if not table:
        raise ClipbiasError(f"{place} lists no image.")
    # An image that is listed twice could be in training and test at once.
    places: dict[str, str] = {}
    for image, _, _, row in table:
        if (other := places.setdefault(image, row)) != row:
            raise ClipbiasError(f"{image} is listed twice, in {other} and in {row}; list it once.")
    # pandas writes whole numbers as 1.0 where a column once lacked a value; JSON's are converted in `_label_text`.
    given = {label for _, label, _, _ in table}
    if not given <= {*(class_names or ())} and all(re.fullmatch(r"-?\d+(\.0)?", label) for label in given):
        table = [(image, label.removesuffix(".0"), split, row) for image, label, split, row in table]
    # The first row of each label is the place that a message names.
    unsorted: dict[str, str] = {}
    for _, label, _, row in table:
        unsorted.setdefault(label, row)
    (check_names if class_names is None else check_told_apart)(unsorted, place)
    numbers = all(label.removeprefix("-").isdecimal() and len(label) < MAX_LABEL_DIGITS for label in unsorted)
    # The string decides between 1 and 01, so that the order does not depend on the rows.
    labels = sorted(unsorted, key=lambda label: (int(label), label)) if numbers else sorted(unsorted)
    label_of = {label: index for index, label in enumerate(labels)}
    if class_names is not None:
        check_class_names(class_names)
    are_names = {*labels} <= {*(class_names or ())}  # digits may be names, too, as in `from_arrays`
    # -1 marks images without a label, by a convention of Hugging Face's datasets.
    if numbers and not are_names and labels[0].startswith("-"):
        raise _no_class(unsorted[labels[0]], labels[0])
    if class_names is not None and are_names:
        label_of = {label: [*class_names].index(label) for label in labels}
    elif class_names is not None:
        count = len(class_names)
        label_of = {label: int(label) for label in labels if label.isdecimal() and len(label) < MAX_LABEL_DIGITS}
        if wrong := [label for label in labels if label_of.get(label, count) >= count]:
            label = next(label for label in [*wrong, *labels] if label not in class_names)
            raise ClipbiasError(
                f"{unsorted[label]}: the label {label!r} does not fit class_names, which is for numbered labels: they "
                f"must be numbers from 0 to {count - 1}, or all be among these names."
            )
    splits: dict[str, Split] = {}
    split_names = sorted({split for _, _, split, _ in table})
    # Dividing only the rows without a split would mix two rules.
    if "" in split_names and len(split_names) > 1:
        raise ClipbiasError(f"{place}: some images have a split and some have none; give every image one, or none.")
    for split_name in split_names:
        images = [image for image, _, split, _ in table if split == split_name]
        classes = np.array([label_of[label] for _, label, split, _ in table if split == split_name])
        splits[split_name or "all"] = files.split_of_files(root, images, classes, listed_in=place, upright=True)
    if not {"all", "train"} & set(splits):
        raise ClipbiasError(f"{place} has {', '.join(split_names)} images but none for train; add some.")
    return Dataset(
        name,
        tuple(labels if class_names is None else class_names),
        DEFAULT_TEMPLATE if template is None else template,
        complete_splits(splits, place),
    )


# Hugging Face datasets, recognised by their attributes, since the package need not be installed.

HUB_NAME = "Hugging Face dataset"


HubDataset: TypeAlias = Any  # `datasets.Dataset`


def is_hub_dataset(value: object) -> bool:
    """Whether an object is a `datasets.Dataset` or `datasets.DatasetDict`."""
    return bool(value) and all(map(_is_table, value.values())) if isinstance(value, Mapping) else _is_table(value)


def _is_table(value: object) -> bool:
    return isinstance(getattr(value, "features", None), Mapping) and hasattr(value, "cast_column")


def from_hub_dataset(tables: HubDataset | Mapping[str, HubDataset], *, template: str = DEFAULT_TEMPLATE) -> Dataset:
    """Converts a table, or tables by the name of their split, to a dataset; pictures are read when they are used.

    Raises `ClipbiasError` unless each table has one column of images and one of class labels, every row has a label,
    tables have the same classes, and split names are known.
    """
    # Whoever gives one table, to `fit` or to `evaluate`, means all of its rows.
    if not isinstance(tables, Mapping):
        split, names = _read(tables, "row")
        return Dataset(HUB_NAME, names, template, {"train": split, "test": split})
    splits: dict[str, Split] = {}
    class_names: dict[tuple[str, ...], None] = {}
    for name, table in tables.items():
        if name not in SPLIT_OF:
            raise ClipbiasError(
                f"the dataset has a split {shown(name)}; name it train, validation or test, or give it alone."
            )
        splits[SPLIT_OF[name]], names = _read(table, name)
        class_names[names] = None
    if len(class_names) > 1:
        raise ClipbiasError("the splits of the dataset have different classes; cast their labels to the same.")
    return Dataset(HUB_NAME, next(iter(class_names)), template, splits)


def _read(table: HubDataset, name: str) -> tuple[Split, tuple[str, ...]]:
    """Reads a table's labels and classes; keys are the table's name and the row."""
    if not hasattr(table, "__len__"):
        raise ClipbiasError("the dataset is a stream without a length; load it without streaming=True.")
    image = _column(table, "Image", "datasets.Image()")
    label = _column(table, "ClassLabel", "datasets.ClassLabel, for example by class_encode_column('label')")
    class_names = tuple(table.features[label].names)
    labels = list(table[label])
    if len(labels) != len(table):
        raise ClipbiasError(f"the dataset has {len(table)} rows and {len(labels)} labels; give each row a label.")
    keys = [f"{name} {row}" for row in range(len(labels))]  # unique among the splits
    if unlabelled := [row for row, number in enumerate(labels) if number not in range(len(class_names))]:
        raise ClipbiasError(
            f"row {unlabelled[0]} of the dataset has the label {labels[unlabelled[0]]}, which is no class; leave such "
            "rows out."
        )
    # Encoded files: the table would decode them in other ways than `transforms`.
    encoded = table.cast_column(image, type(table.features[image])(decode=False)).select_columns([image])

    def read(index: int) -> bytes:
        record = encoded[index][image]
        if record is None:
            raise UnreadableImage(keys[index], f"{keys[index]} of the dataset has no image")
        return record["bytes"] if record["bytes"] is not None else files.read_image(data_path(record["path"]))

    split = Split(keys, np.asarray(labels, np.int32), read, upright=True)
    # The package's hash of a table's content, so that no image is read for the identity.
    if fingerprint := getattr(table, "_fingerprint", None):
        split = dataclasses.replace(split, source=f"{HUB_NAME} {fingerprint}", contents=lambda paths: [fingerprint])
    return split, class_names


def _column(table: HubDataset, kind: str, advice: str) -> str:
    columns: Sequence[str] = [name for name, feature in table.features.items() if type(feature).__name__ == kind]
    if len(columns) == 1:
        return columns[0]
    if columns:
        raise ClipbiasError(f"the dataset has the {kind} columns {', '.join(columns)}; drop all but one of them.")
    raise ClipbiasError(f"the dataset has no {kind} column among {', '.join(table.features)}; cast one to {advice}.")
