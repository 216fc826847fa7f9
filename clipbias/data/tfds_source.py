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
OWN_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # of builders outside the catalogue


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
        own, dividing where a split is missing. None is "coop" where no split file is needed (ImageNet and its
        variants), else "builder".
      split_dir: For "coop": where the split file is, the root of the datasets in CoOp's layout or the folder itself;
        None looks in `data_dir`.

    Raises:
      ClipbiasError: not prepared (with the command that does it), not array_record, no file names to match, or images
        of the split that the builder lacks.
    """
    from clipbias.data import tfds_records

    data_dir = DEFAULT_DATA_DIR if data_dir is None else data_dir
    wanted = name.removeprefix("tfds/")
    entry = find_entry(wanted)
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
        prepared = tfds_records.find_prepared(data_dir, wanted, "0.0.0")
        return _with_own_split(name, None, TfdsBuilder(wanted, OWN_SPLITS), prepared, template)
    prepared = tfds_records.find_prepared(data_dir, stock.builder, stock.version if split == "coop" else "0.0.0")
    if split == "builder":
        return _with_own_split(name, entry, stock, prepared, template)
    split_dir = data_dir if split_dir is None else split_dir
    return _with_benchmark_split(name, entry, stock, prepared, template, split_dir)


def find_entry(wanted: str) -> CatalogEntry | None:
    """The catalogue entry of a catalogue name or of a builder's name, with or without its configuration."""
    for entry in catalog.ENTRIES.values():
        builder = entry.tfds.builder if entry.tfds else ""
        if wanted in (entry.name, builder, builder.split("/")[0]):
            return entry
    return None


def _with_own_split(
    name: str, entry: CatalogEntry | None, stock: TfdsBuilder, prepared: "PreparedDataset", template: str | None
) -> Dataset:
    label_names = prepared.label_names
    kept = [label for label, label_name in enumerate(label_names) if label_name not in stock.drop]
    new_label = np.full(len(label_names), -1, np.int32)
    new_label[kept] = np.arange(len(kept))
    splits = {}
    for own, benchmark_name in stock.splits.items():
        if own not in prepared.splits:
            continue
        records = prepared.records(own, None)
        keys = [f"{own}/{number}" for number in records.ids]  # without a feature: numbers
        whole = Split(keys, new_label[records.labels], records.read)
        splits[benchmark_name] = whole.subset(np.flatnonzero(whole.labels >= 0))
    if not splits:
        raise ClipbiasError(f"{name} has the splits {', '.join(prepared.splits)}, none of which is known.")
    if {"train", "all"} & set(splits):
        splits = complete_splits(splits, name)
    if stock.difference:
        logging.warning("%s is not the benchmark's split: %s.", name, stock.difference)
    rename = entry.class_name if entry is not None else class_names.unchanged
    own_template = entry.template if entry is not None else DEFAULT_TEMPLATE
    names = tuple(rename(label_names[label]) for label in kept)
    return Dataset(name, names, own_template if template is None else template, splits)


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
    for own, benchmark_name in stock.splits.items():
        if own not in prepared.splits:
            continue
        records = prepared.records(own, stock.id_feature)
        names = [label_names[label] for label in records.labels.tolist()]
        form = stock.path.replace("{split}", benchmark_name).format
        listed = [form(id=i.lstrip("/"), label=name) for i, name in zip(records.ids, names, strict=True)]
        available |= {_fold(path, stock): number for number, path in enumerate(listed, start=len(paths))}
        paths += listed
        parts.append(records)
    listing = _listing(entry, stock, [paths[number] for number in available.values()], split_dir)
    lacking: list[str] = []
    splits: dict[str, Split] = {}
    for split_name, (wanted, labels) in listing.splits.items():
        places = np.fromiter((available.get(_fold(path, stock), -1) for path in wanted), np.int64, len(wanted))
        lacking.extend(wanted[index] for index in np.flatnonzero(places < 0).tolist())
        found = np.flatnonzero(places >= 0)
        keys = [wanted[index] for index in found.tolist()]
        splits[split_name] = Split(keys, labels[found], _from_each(parts, places[found]))
    if len(lacking) > stock.may_lack:
        raise ClipbiasError(
            f"{name}: {prepared.folder} lacks {len(lacking)} images of the benchmark's split, such as {lacking[0]}; "
            "prepare the whole dataset, or read the images from CoOp's folder layout."
        )
    if lacking:
        logging.warning("%s lacks %s, which TFDS could not decode.", name, ", ".join(lacking))
    template = entry.template if template is None else template
    return Dataset(name, listing.class_names, template, splits, listing.class_ids)


def _listing(
    entry: CatalogEntry, stock: TfdsBuilder, available: Iterable[str], split_dir: str | os.PathLike
) -> benchmark.DatasetListing:
    root = data_path(split_dir)
    root = benchmark.own_folder(entry, root) or root
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


def _from_each(parts: Sequence[Records], places: np.ndarray) -> Callable[[int], bytes]:
    """`Split.read` of examples that are each a record of its own, numbered through all `parts`."""
    ends = np.cumsum([len(records.ids) for records in parts])

    def read(index: int) -> bytes:
        part = int(np.searchsorted(ends, places[index], side="right"))
        return parts[part].read(int(places[index] - (ends[part] - len(parts[part].ids))))

    return read
