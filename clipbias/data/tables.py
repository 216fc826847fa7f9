"""A user's images listed in a table: CSV, JSON lines, or a folder with `metadata.jsonl` as Hugging Face has it."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data import files_on_disk
from clipbias.data.dataset import Dataset, Split
from clipbias.data.folder import SPLIT_OF, complete_splits
from clipbias.errors import ClipbiasError
from clipbias.io import data_path, parse_json, read_text, reason

METADATA = ("metadata.jsonl", "metadata.csv")

LONGEST_NUMBER = 10  # digits of a label; longer ones are names

TableRow = tuple[str, str, str]  # path, label, split


def load(
    data_dir: str | os.PathLike | None,
    *,
    template: str | None = None,
    class_names: Sequence[str] | None = None,
    path_column: str = "path",
    label_column: str = "label",
) -> Dataset:
    """Reads a table of images: `path,label[,split]`.

    Args:
      data_dir: The `.csv` (with a header line) or `.jsonl` file; paths in it are relative to its folder and stay below
        it.
      template: Prompt template; None takes "a photo of a {}.".
      class_names: Names of integer labels 0, 1, ...; None takes the labels themselves as names, sorted.
      path_column: The column or key that holds the path.
      label_column: The column or key that holds the label.

    Raises:
      ClipbiasError: no such file, a missing column, an unknown split, a path that leaves the folder.
    """
    if data_dir is None:
        raise ClipbiasError("dataset csv needs data_dir, the .csv or .jsonl file that lists the images.")
    path = data_path(data_dir)
    if not _is_file(path):
        raise ClipbiasError(f"dataset csv: there is no file {path}; data_dir must name the .csv or .jsonl file.")
    rows = _rows(path, path_column, label_column, "")
    return _dataset("csv", path.parent, list(rows), template, class_names, str(path))


def has_metadata(folder: Path) -> bool:
    """Whether `folder`, or a split folder in it, holds a `metadata.jsonl` or `metadata.csv`."""
    places = ["", *SPLIT_OF]
    return any(_is_file(folder / place / name) for place in places for name in METADATA)


def _is_file(path: Path) -> bool:
    """Whether a file exists. Raises `ClipbiasError` if its folder may not be read."""
    try:
        return path.is_file()
    except PermissionError as error:
        raise ClipbiasError(f"cannot read the folder {path.parent}: {reason(error)}; check its permissions.") from error


def load_metadata(
    folder: Path,
    *,
    template: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Reads an image folder as Hugging Face `datasets` does: `metadata.jsonl` with `file_name` and a label.

    The metadata lies beside the images, in `folder` or in each of `train/`, `validation/`, `test/`.
    """
    rows: list[TableRow] = []
    for place, split_name in [("", ""), *SPLIT_OF.items()]:
        for name in METADATA:
            path = folder / place / name
            if _is_file(path):
                for image, label, row_split in _rows(path, "file_name", "label", split_name):
                    rows.append((f"{place}/{image}" if place else image, label, row_split))
    return _dataset("folder", folder, rows, template, class_names, str(folder))


def _rows(path: Path, path_column: str, label_column: str, split_name: str) -> Iterator[TableRow]:
    for number, record in _records(path):
        for column in (path_column, label_column):
            if record.get(column) in (None, ""):
                columns = ", ".join(key for key in record if key)
                raise ClipbiasError(f"{path}, line {number}: no value for {column!r}; the columns are {columns}.")
        image = files_on_disk.check_relative(str(record[path_column]), listed_in=f"{path}, line {number},")
        split = str(record.get("split") or split_name)
        if split and split not in SPLIT_OF:
            raise ClipbiasError(f"{path}, line {number}: the split is {split!r}; it must be train, val or test.")
        yield image, str(record[label_column]), SPLIT_OF.get(split, "")


def _records(path: Path) -> Iterator[tuple[int, Mapping]]:
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for record in reader:
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
    name: str,
    root: Path,
    rows: list[TableRow],
    template: str | None,
    class_names: Sequence[str] | None,
    place: str,
) -> Dataset:
    if not rows:
        raise ClipbiasError(f"{place} lists no image.")
    unsorted = {label for _, label, _ in rows}
    numbers = all(label.isdecimal() and len(label) < LONGEST_NUMBER for label in unsorted)
    # The text decides between 1 and 01, so that the order never depends on anything else.
    labels = sorted(unsorted, key=lambda label: (int(label), label)) if numbers else sorted(unsorted)
    label_of = {label: index for index, label in enumerate(labels)}
    if class_names is not None:
        if not numbers or int(labels[-1]) >= len(class_names):
            raise ClipbiasError(
                f"{place}: class_names goes with labels 0 to {len(class_names) - 1}, found {labels[-1]!r}."
            )
        label_of = {label: int(label) for label in labels}
    splits: dict[str, Split] = {}
    split_names = sorted({split for _, _, split in rows})
    if "" in split_names and len(split_names) > 1:
        raise ClipbiasError(f"{place}: some images have a split and some have none; give every image one, or none.")
    for split_name in split_names:
        images = [image for image, _, split in rows if split == split_name]
        numbered = [label_of[label] for _, label, split in rows if split == split_name]
        splits[split_name or "all"] = files_on_disk.split_of_files(
            root, images, numbered, listed_in=place, upright=True
        )
    if not {"all", "train"} & set(splits):
        raise ClipbiasError(f"{place} has {', '.join(split_names)} images but none for train; add some.")
    return Dataset(
        name,
        tuple(labels if class_names is None else class_names),
        DEFAULT_TEMPLATE if template is None else template,
        complete_splits(splits, place),
    )
