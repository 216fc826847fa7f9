"""Datasets of Hugging Face's package `datasets`, which need not be installed: they are known by what they have."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np

from clipbias.checks import shown
from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data.dataset import Dataset, Split
from clipbias.data.files_on_disk import read_image
from clipbias.data.folder import SPLIT_OF
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.io import data_path

NAME = "Hugging Face dataset"


class HubDataset(Protocol):
    """The part of `datasets.Dataset` that is used: a table, whose columns have types by name."""

    @property
    def features(self) -> Mapping[str, Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, key: int | str) -> Any: ...
    def cast_column(self, column: str, feature: Any) -> "HubDataset": ...
    def select_columns(self, column_names: list[str]) -> "HubDataset": ...


def is_hub_dataset(source: object) -> TypeGuard[HubDataset | Mapping[str, HubDataset]]:
    """Whether it is a `datasets.Dataset`, or a `datasets.DatasetDict` of them."""
    if isinstance(source, Mapping):
        return bool(source) and all(map(_is_table, source.values()))
    return _is_table(source)


def _is_table(source: object) -> bool:
    return isinstance(getattr(source, "features", None), Mapping) and hasattr(source, "cast_column")


def from_hub_dataset(source: HubDataset | Mapping[str, HubDataset], *, template: str = DEFAULT_TEMPLATE) -> Dataset:
    """The pictures and labels of a table, or of several by the name of their split; pictures are read when used.

    A single table serves for training and for testing, whichever is done with it.

    Raises:
      ClipbiasError: a table has not one column of images and one of class labels, a row has no label, the tables differ
        in their classes, or a split has an unknown name.
    """
    if not isinstance(source, Mapping):
        split, names = _read(source, "row")
        return Dataset(NAME, names, template, {"train": split, "test": split})
    splits: dict[str, Split] = {}
    class_names: dict[tuple[str, ...], None] = {}
    for name, table in source.items():
        if name not in SPLIT_OF:
            raise ClipbiasError(
                f"the dataset has a split {shown(name)}; name it train, validation or test, or give it alone."
            )
        splits[SPLIT_OF[name]], names = _read(table, name)
        class_names[names] = None
    if len(class_names) > 1:
        raise ClipbiasError("the splits of the dataset have different classes; cast their labels to the same.")
    return Dataset(NAME, next(iter(class_names)), template, splits)


def _read(table: HubDataset, name: str) -> tuple[Split, tuple[str, ...]]:
    """A table's pictures with their labels, and the classes; keys are the table's name and the row."""
    if not hasattr(table, "__len__"):
        raise ClipbiasError("the dataset is a stream without a length; load it without streaming=True.")
    image = _column(table, "Image", "datasets.Image()")
    label = _column(table, "ClassLabel", "datasets.ClassLabel, for example by class_encode_column('label')")
    class_names = tuple(table.features[label].names)
    values = list(table[label])
    if len(values) != len(table):
        raise ClipbiasError(f"the dataset has {len(table)} rows and {len(values)} labels; give each row a label.")
    keys = [f"{name} {row}" for row in range(len(values))]  # no image of another split has the same
    unlabelled = [row for row, value in enumerate(values) if value not in range(len(class_names))]
    if unlabelled:
        raise ClipbiasError(
            f"row {unlabelled[0]} of the dataset has the label {values[unlabelled[0]]}, which is no class; leave such "
            "rows out."
        )
    # The encoded files: the table would decode them, in formats and ways of its own.
    encoded = table.cast_column(image, type(table.features[image])(decode=False)).select_columns([image])

    def read(index: int) -> bytes:
        record = encoded[index][image]
        if record is None:
            raise UnreadableImage(keys[index], f"{keys[index]} of the dataset has no image")
        return record["bytes"] if record["bytes"] is not None else read_image(data_path(record["path"]))

    split = Split(keys, np.asarray(values, np.int32), read, upright=True)
    if fingerprint := getattr(table, "_fingerprint", None):  # by which the package names what a table holds
        split = dataclasses.replace(split, source=f"{NAME} {fingerprint}", contents=lambda paths: [])
    return split, class_names


def _column(table: HubDataset, kind: str, advice: str) -> str:
    """The only column of a type."""
    columns: Sequence[str] = [name for name, feature in table.features.items() if type(feature).__name__ == kind]
    if len(columns) == 1:
        return columns[0]
    if columns:
        raise ClipbiasError(f"the dataset has the {kind} columns {', '.join(columns)}; drop all but one of them.")
    raise ClipbiasError(
        f"the dataset has no {kind} column among {', '.join(table.features)}; cast the column to {advice}."
    )
