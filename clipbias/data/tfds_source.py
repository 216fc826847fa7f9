"""Datasets that tensorflow-datasets has prepared, with the builder's own split or with the benchmark's."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data import benchmark, catalog, class_names
from clipbias.data.dataset import Dataset, Split
from clipbias.data.entry import CatalogEntry, TfdsBuilder
from clipbias.data.folder import complete_splits
from clipbias.data.tfds_records import Records
from clipbias.errors import ClipbiasError
from clipbias.io import data_path

if TYPE_CHECKING:
    from clipbias.data.tfds_records import PreparedDataset

DEFAULT_DATA_DIR = "~/tensorflow_datasets"
BUILDER_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # of builders outside the catalogue


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    template: str | None = None,
    split: str | None = None,
    split_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Opens a prepared dataset; tensorflow is not needed.

    Args:
      name: "tfds/" and a catalogue name ("tfds/food101") or any builder with `image` and `label` features.
      data_dir: TFDS's data folder; None takes ~/tensorflow_datasets.
      template: Prompt template; None takes the catalogue's.
      split: "coop" imposes the benchmark's split, labels and class names by file name; "builder" takes the builder's
        split, dividing where one is missing. None is "coop" where no split file is needed (ImageNet and its
        variants), else "builder".
      split_dir: For "coop": where the split file is, the root of the datasets in CoOp's layout or the folder itself;
        None looks in `data_dir`.

    Raises:
      ClipbiasError: not prepared (with the command that does it), not array_record, no file names to match, or images
        of the split that the builder lacks.
    """
    from clipbias.data import tfds_records

    data_dir = DEFAULT_DATA_DIR if data_dir is None else data_dir
    builder = name.removeprefix("tfds/")
    entry = find_entry(builder)
    stock = None if entry is None else entry.tfds
    if entry is not None and stock is None:
        raise ClipbiasError(
            f"tensorflow-datasets has no usable builder for {entry.name}; make shards of its folder with "
            f"'clipbias prepare_data build {entry.name}' and load it as {entry.name}."
        )
    if split is None:
        split = "coop" if entry is not None and entry.split_file is None else "builder"
    if split not in ("coop", "builder"):
        raise ClipbiasError(f"split is {split!r}; it must be 'coop' or 'builder'.")
    if entry is None or stock is None:
        if split == "coop":
            raise ClipbiasError(f"{name} is not in the catalogue, so it has no benchmark split; use split='builder'.")
        prepared = tfds_records.find_prepared(data_dir, builder, "0.0.0")
        return _with_builder_split(name, None, TfdsBuilder(builder, BUILDER_SPLITS), prepared, template)
    prepared = tfds_records.find_prepared(data_dir, stock.builder, stock.version if split == "coop" else "0.0.0")
    if split == "builder":
        return _with_builder_split(name, entry, stock, prepared, template)
    split_dir = data_dir if split_dir is None else split_dir
    return _with_benchmark_split(name, entry, stock, prepared, template, split_dir)


def find_entry(name: str) -> CatalogEntry | None:
    """The entry with this catalogue name, or with this builder, whose configuration may be left out."""
    for entry in catalog.ENTRIES.values():
        builder = entry.tfds.builder if entry.tfds else ""
        if name in (entry.name, builder, builder.split("/")[0]):
            return entry
    return None


def _with_builder_split(
    name: str, entry: CatalogEntry | None, stock: TfdsBuilder, prepared: "PreparedDataset", template: str | None
) -> Dataset:
    label_names = prepared.label_names
    labels = [label for label, label_name in enumerate(label_names) if label_name not in stock.drop]
    new_label = np.full(len(label_names), -1, np.int32)
    new_label[labels] = np.arange(len(labels))
    splits = {}
    for builder_name, benchmark_name in stock.splits.items():
        if builder_name not in prepared.splits:
            continue
        records = prepared.records(builder_name, None)
        keys = [f"{builder_name}/{number}" for number in records.ids]  # without a feature: numbers
        whole = Split(
            keys, new_label[records.labels], records.read, source=str(prepared.folder), contents=prepared.sizes
        )
        splits[benchmark_name] = whole.subset(np.flatnonzero(whole.labels >= 0))
    if not splits:
        raise ClipbiasError(f"{name} has the splits {', '.join(prepared.splits)}, none of which is known.")
    if {"train", "all"} & set(splits):
        splits = complete_splits(splits, name)
    if stock.difference:
        logging.warning("%s is not the benchmark's split: %s.", name, stock.difference)
    rename = entry.class_name if entry is not None else class_names.unchanged
    names = tuple(rename(label_names[label]) for label in labels)
    if template is None:
        template = entry.template if entry is not None else DEFAULT_TEMPLATE
    return Dataset(name, names, template, splits)


def _with_benchmark_split(
    name: str,
    entry: CatalogEntry,
    stock: TfdsBuilder,
    prepared: "PreparedDataset",
    template: str | None,
    split_dir: str | os.PathLike,
) -> Dataset:
    # Labels and class names come from the benchmark's listing alone: the builder's numbering, which differs
    # for Food101 and Caltech101, is used for nothing but the folder part of a path.
    label_names = prepared.label_names
    parts: list[Records] = []
    available: dict[str, int] = {}  # the number of each path among the records of all splits
    paths: list[str] = []
    for builder_name, benchmark_name in stock.splits.items():
        if builder_name not in prepared.splits:
            continue
        records = prepared.records(builder_name, stock.id_feature)
        names = [label_names[label] for label in records.labels.tolist()]
        format_path = stock.path.replace("{split}", benchmark_name).format
        part = [format_path(id=i.lstrip("/"), label=name) for i, name in zip(records.ids, names, strict=True)]
        available |= {_fold(path, stock): number for number, path in enumerate(part, start=len(paths))}
        paths += part
        parts.append(records)
    listing = _listing(entry, stock, [paths[number] for number in available.values()], split_dir)
    missing: list[str] = []
    splits: dict[str, Split] = {}
    for split_name, (keys, labels) in listing.splits.items():
        numbers = np.fromiter((available.get(_fold(key, stock), -1) for key in keys), np.int64, len(keys))
        missing.extend(keys[index] for index in np.flatnonzero(numbers < 0).tolist())
        present = np.flatnonzero(numbers >= 0)
        present_keys = [keys[index] for index in present.tolist()]
        splits[split_name] = Split(
            present_keys,
            labels[present],
            _read_from(parts, numbers[present]),
            source=str(prepared.folder),
            contents=prepared.sizes,
        )
    if len(missing) > stock.may_lack:
        raise ClipbiasError(
            f"{name}: {prepared.folder} lacks {len(missing)} images of the benchmark's split, such as {missing[0]}; "
            "prepare the whole dataset, or read the images from CoOp's folder layout."
        )
    if missing:
        logging.warning("%s lacks %s, which TFDS could not decode.", name, ", ".join(missing))
    template = entry.template if template is None else template
    return Dataset(name, listing.class_names, template, splits, listing.class_ids)


def _listing(
    entry: CatalogEntry, stock: TfdsBuilder, available: Iterable[str], split_dir: str | os.PathLike
) -> benchmark.DatasetListing:
    root = data_path(split_dir)
    root = benchmark.dataset_folder(entry, root) or root
    if entry.split_file is not None:
        hint = f"say where it is with split_dir, or {benchmark.how_to_fetch(entry, split_alone=True)}"
        return benchmark.read_split_file(root / entry.split_file, hint=hint)
    names = benchmark.imagenet_names(root)
    tree: dict[str, list[str]] = {}
    for path in available:
        folder, _, image = path.rpartition("/")
        tree.setdefault(folder, []).append(image)
    return benchmark.from_class_folders(
        entry,
        names,
        lambda prefix: [folder[len(prefix) :] for folder in tree if folder.startswith(prefix)],
        lambda part, folders: (sorted(tree[part + folder]) for folder in folders),
        stock.builder,
    )


def _fold(path: str, stock: TfdsBuilder) -> str:
    return path.lower() if stock.ignore_case else path


def _read_from(parts: Sequence[Records], numbers: np.ndarray) -> Callable[[int], bytes]:
    """`Split.read` of examples whose records have these `numbers`, counted through all `parts`."""
    ends = np.cumsum([len(records.ids) for records in parts])

    def read(index: int) -> bytes:
        part = int(np.searchsorted(ends, numbers[index], side="right"))
        first = ends[part] - len(parts[part].ids)
        return parts[part].read(int(numbers[index] - first))

    return read
