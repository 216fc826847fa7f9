"""Prepared datasets of tensorflow-datasets, with the builder's split or the benchmark's; clipbias's shards are such.

array_record files are read without tensorflow, from disks and gs://. An index of each split has names and labels, so
that opening a dataset reads no record.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from clipbias import hosts, io
from clipbias.checks import check_text
from clipbias.constants import SECONDS_BETWEEN_LINES
from clipbias.data import benchmark, catalog, transforms
from clipbias.data.catalog import CatalogEntry, TfdsBuilder
from clipbias.data.dataset import Dataset, Split
from clipbias.data.folder import complete_splits
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.identity import identity

# Labels of `n` records, int32 [n], and their identifying features, which may repeat; empty without a feature.
RecordIndex = tuple[np.ndarray, tuple[str, ...]]


RECORDS_AT_ONCE = 256  # records in a read
# Keys of Python classes in a description of features; the last one is that of old descriptions.
CLASS_KEYS = frozenset({"pythonClassName", "python_class_name", "type"})
TFDS_FEATURES = "tensorflow_datasets.core.features."
_SPLIT = re.compile(r"[\w-]+")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A split of a prepared dataset."""

    ids: tuple[str, ...]  # identifying features, which may repeat, else numbers
    labels: np.ndarray  # int32 [n]
    read: Callable[[int], bytes]  # returns the encoded image of a record by its number


class PreparedDataset:
    """A dataset prepared by TFDS as array_record in `folder` (with `dataset_info.json`)."""

    def __init__(self, folder: epath.PathLike) -> None:
        import tensorflow_datasets as tfds

        self.folder = epath.Path(folder)
        self._tfds = tfds
        # Before TFDS opens the folder, and imports what the description names.
        check_features(self.folder / "features.json")
        try:
            self._builder = tfds.builder_from_directory(self.folder)
            file_format = self._builder.info.file_format
        except Exception as error:  # TFDS raises many types for damaged descriptions
            words = f"is not a dataset that tensorflow-datasets can open ({io.reason(error)})"
            raise ClipbiasError(f"{self.folder} {words}; prepare it again.") from error
        if file_format is None or file_format.value != "array_record":
            raise ClipbiasError(
                f"{self.folder} is stored as {file_format.value if file_format else 'an unknown format'}, which needs "
                f"tensorflow to read; convert it: tfds convert_format --dataset_version_dir={self.folder} "
                "--out_file_format=array_record --out_dir=<new folder>"
            )

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._builder.info.splits)

    @property
    def label_names(self) -> tuple[str, ...]:
        with self.explained("the description"):
            return tuple(self._builder.info.features["label"].names)

    @property
    def metadata(self) -> Mapping:
        with self.explained("the description"):
            return dict(self._builder.info.metadata or {})

    def source(self, split: str) -> Any:
        """Opens random access to the records of a split; images stay encoded."""
        # `transforms` decodes, so that pixels are those of the same files in an image folder.
        features = self._builder.info.features
        skip = {
            key: self._tfds.decode.SkipDecoding()
            for key, feature in features.items()
            if isinstance(feature, self._tfds.features.Image)
        }
        with self.explained(split):
            return self._builder.as_data_source(split, decoders=skip)

    @contextlib.contextmanager
    def explained(self, part: str) -> Iterator[None]:
        """Converts errors of TFDS, which raises many types for damaged records, to `ClipbiasError`."""
        try:
            yield
        except ClipbiasError:
            raise
        except Exception as error:
            advice = "prepare the dataset again"
            if io.is_remote(self.folder):
                advice = "see that this machine may read the bucket, or copy the folder to a disk"
            raise ClipbiasError(f"{part} in {self.folder} cannot be read ({io.reason(error)}); {advice}.") from error

    def sizes(self, paths: Sequence[str]) -> list[int]:
        """Returns the sizes of all record files, for any `paths` (`Split.contents`)."""
        # Records share files, so that no image has a size of its own.
        return [path.stat().length for path in sorted(self.folder.glob("*.array_record*"))]

    def images(self, keys: Sequence[str], labels: np.ndarray, read: Callable[[int], bytes], **options: Any) -> Split:
        """Returns records as a split, by their keys, labels and a function that reads them."""
        return Split(keys, labels, read, source=str(self.folder), contents=self.sizes, **options)

    def records(self, split: str, id_feature: str | None) -> Records:
        """Returns identifiers and labels of a split from its index, which is made at the first use."""
        if not _SPLIT.fullmatch(split) or split not in self.splits:  # the name becomes a part of a file's name
            raise ClipbiasError(f"{self.folder} has no split {split!r}; it has {', '.join(self.splits)}.")
        count = self._builder.info.splits[split].num_examples
        with self.explained(split):
            labels, ids = self._index(split, id_feature, count)
        # Padded, so that sorting names keeps the order of records.
        ids = ids or tuple(f"{number:07d}" for number in range(count))
        lock = threading.Lock()
        # Opened at the first use, since a run may need only the labels; under a lock, since threads read images.
        opened = functools.cache(lambda: self.source(split))

        def read(number: int) -> bytes:
            try:
                with lock:
                    source = opened()
                with self.explained(f"record {number} of {split}"):
                    return source[int(number)]["image"]
            except ClipbiasError as error:
                raise UnreadableImage(f"record {number} of {split} in {self.folder}", str(error).rstrip(".")) from error

        return Records(ids, labels, read)

    def _index(self, split: str, id_feature: str | None, count: int) -> RecordIndex:
        files = sorted(path for path in self.folder.iterdir() if f"-{split}." in path.name)
        stats = [path.stat() for path in files]
        # Names and sizes identify records, so that a copy of the folder brings a valid index. In the cache folder, with
        # indices of all datasets, place and times count, too.
        sizes = [(path.name, stat.length) for path, stat in zip(files, stats, strict=True)]
        records = identity([id_feature, count, sizes])
        cached = identity([records, str(self.folder), [stat.mtime for stat in stats]])
        in_cache = epath.Path(io.cache_folder()) / "records" / f"{cached}.npz"
        places = (self.folder / f"clipbias_index_{split}.npz", in_cache)
        for path in places:
            # An index that is missing, damaged or of other records is made again.
            with contextlib.suppress(ClipbiasError, KeyError, ValueError):
                stored = io.load_arrays(path)
                labels, ids = stored["labels"], tuple(json.loads(stored["ids"].tobytes()))
                if str(stored["of"]) == records and len(labels) == count and len(ids) in (0, count):
                    return labels, ids
        labels, ids = self._read_index(split, id_feature)
        index = {"of": np.array(records), "labels": labels, "ids": np.frombuffer(json.dumps(ids).encode(), np.uint8)}
        for path in places:
            try:
                io.save_arrays(path, index)
                break
            except ClipbiasError as error:
                logging.warning("The index of %s is not kept here: %s", self.folder, error)
        return labels, ids

    def _read_index(self, split: str, id_feature: str | None) -> RecordIndex:
        features = self._builder.info.features
        for name in ("image", "label", id_feature):
            if name is not None and name not in features:
                raise ClipbiasError(f"{self.folder} has no feature {name!r}; it has {', '.join(features)}.")
        ids: list[str] = []
        read_labels: list[int] = []
        source = self.source(split)
        last_line = time.monotonic()
        logging.info("%s has no index: all %d records of %s are read, this once", self.folder, len(source), split)
        with self.explained(split):
            # Records are read in chunks, which takes a fraction of the time of single reads.
            for first in range(0, len(source), RECORDS_AT_ONCE):
                hosts.check()
                for record in source.__getitems__(range(first, min(first + RECORDS_AT_ONCE, len(source)))):
                    read_labels.append(int(record["label"]))
                    if id_feature:
                        ids.append(bytes(record[id_feature]).decode())
                if time.monotonic() > last_line + SECONDS_BETWEEN_LINES:
                    last_line = time.monotonic()
                    logging.info("%d of %d records of %s", len(read_labels), len(source), split)
        return np.asarray(read_labels, np.int32), tuple(ids)


def records_path(path: str | os.PathLike) -> Path:
    """Returns a path of records. Raises `ClipbiasError` for buckets besides gs://, which array_record cannot read."""
    return io.data_path(path) if str(path).startswith("gs://") else io.user_path(path)


def find_prepared(data_dir: epath.PathLike, builder: str, lowest_version: str = "0.0.0") -> PreparedDataset:
    """Opens the newest prepared version of `builder` below `data_dir`. Raises `ClipbiasError` if there is none."""
    place = epath.Path(records_path(data_dir)) / builder
    folders = [path for path in place.iterdir() if _VERSION.fullmatch(path.name)] if place.exists() else []
    versions = [path for path in folders if (path / "dataset_info.json").exists()]
    # Older versions of some builders lack the file names that the benchmark's split needs.
    candidates = [path for path in versions if _key(path.name) >= _key(lowest_version)]
    if not candidates:
        present = f"only version {', '.join(sorted(path.name for path in versions))}" if versions else "nothing"
        at_least = f" in version {lowest_version} or later" if lowest_version != "0.0.0" else ""
        exact = f":{lowest_version}" if lowest_version != "0.0.0" else ""
        raise ClipbiasError(
            f"{builder} is not prepared{at_least} under {data_dir} (found {present}); prepare it where tensorflow is "
            f"installed (pip install 'clipbias[tensorflow]'): python -c \"import tensorflow_datasets as tfds; "
            f"tfds.builder('{builder}{exact}', data_dir='{data_dir}', file_format='array_record')"
            '.download_and_prepare()"'
        )
    return PreparedDataset(max(candidates, key=lambda path: _key(path.name)))


def check_features(path: epath.Path) -> None:
    """Raises `ClipbiasError` if a description of features names a class outside of TFDS."""

    # TFDS imports every module that is named here: a downloaded dataset could run its code.
    def check_classes(pairs: list[tuple[str, object]]) -> dict[str, object]:
        for key, value in pairs:
            is_tfds = isinstance(value, str) and value.startswith(TFDS_FEATURES)
            if key in CLASS_KEYS and not is_tfds and not isinstance(value, dict):
                raise ClipbiasError(
                    f"{path} names the class {value!r}; only TFDS's own are read, because naming another runs its code."
                )
        return dict(pairs)

    try:
        json.loads(io.read_text(path), object_pairs_hook=check_classes)
    except ClipbiasError:
        if path.exists():
            raise
    except (ValueError, RecursionError) as error:
        raise ClipbiasError(f"{path} is not a description of features ({error}); prepare the dataset again.") from error


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


DEFAULT_DATA_DIR = "~/tensorflow_datasets"


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    template: str | None = None,
    split: str | None = None,
    split_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Opens a prepared dataset, without tensorflow: "tfds/" and a catalogue name or a builder with `image` and `label`.

    `split` is "coop" for the benchmark's split, labels and class names, matched by file name, with the split file in
    `split_dir` (default: `data_dir`, by default ~/tensorflow_datasets); or "builder" for the builder's splits,
    completed if some are missing. By default ImageNet and its variants have "coop".

    Raises `ClipbiasError` for a dataset that is not prepared as array_record, or lacks file names or images.
    """
    data_dir = DEFAULT_DATA_DIR if data_dir is None else data_dir
    builder = name.removeprefix("tfds/")
    entry = None  # of this name, or of this builder, with or without its configuration
    for candidate in catalog.ENTRIES.values():
        known = candidate.tfds.builder if candidate.tfds else ""
        if builder in (candidate.name, known, known.split("/")[0]):
            entry = candidate
            break
    # A builder of the catalogue has facts: its file names, splits and missing images.
    stock = None if entry is None else entry.tfds
    if entry is not None and stock is None:
        raise ClipbiasError(
            f"tensorflow-datasets has no usable builder for {entry.name}; make shards of its folder with "
            f"'clipbias prepare_data --config.action=build --config.datasets={entry.name}' and load it as {entry.name}."
        )
    if split is None:
        split = "coop" if entry is not None and entry.split_file is None else "builder"
    if split not in ("coop", "builder"):
        raise ClipbiasError(f"split is {split!r}; it must be 'coop' or 'builder'.")
    if entry is None or stock is None:
        if split == "coop":
            raise ClipbiasError(f"{name} is not in the catalogue, so it has no benchmark split; use split='builder'.")
        prepared = find_prepared(data_dir, builder)
        if "stored_as" in prepared.metadata:  # clipbias's shards
            return load_shards(prepared.folder, template=template)
        entry = CatalogEntry(name, name, catalog.OTHER, "", 0, {}, {})
        return _with_builder_split(name, entry, TfdsBuilder(builder), prepared, template)
    prepared = find_prepared(data_dir, stock.builder, stock.version if split == "coop" else "0.0.0")
    if split == "builder":
        return _with_builder_split(name, entry, stock, prepared, template)
    split_dir = data_dir if split_dir is None else split_dir
    return _with_benchmark_split(name, entry, stock, prepared, template, split_dir)


def _with_builder_split(
    name: str, entry: CatalogEntry, stock: TfdsBuilder, prepared: PreparedDataset, template: str | None
) -> Dataset:
    label_names = prepared.label_names
    labels = [label for label, label_name in enumerate(label_names) if label_name not in stock.drop]
    # Classes that the benchmark leaves out (Caltech's background) get -1, and their images are dropped below.
    new_label = np.full(len(label_names), -1, np.int32)
    new_label[labels] = np.arange(len(labels))
    splits = {}
    for builder_name, benchmark_name in stock.splits.items():
        if builder_name not in prepared.splits:
            continue
        records = prepared.records(builder_name, None)
        keys = [f"{builder_name}/{number}" for number in records.ids]  # without a feature: numbers
        whole = prepared.images(keys, new_label[records.labels], records.read)
        splits[benchmark_name] = whole.subset(np.flatnonzero(whole.labels >= 0))
    if not splits:
        raise ClipbiasError(f"{name} has the splits {', '.join(prepared.splits)}, none of which is known.")
    # A builder with a test split alone, as the variants of ImageNet have, stays so.
    if {"train", "all"} & set(splits):
        splits = complete_splits(splits, name)
    if stock.difference:
        logging.warning("%s is not the benchmark's split: %s.", name, stock.difference)
    names = tuple(entry.class_name(label_names[label]) for label in labels)
    return Dataset(name, names, entry.template if template is None else template, splits)


def _with_benchmark_split(
    name: str,
    entry: CatalogEntry,
    stock: TfdsBuilder,
    prepared: PreparedDataset,
    template: str | None,
    split_dir: str | os.PathLike,
) -> Dataset:
    # Labels and class names are the benchmark's: the builder numbers the classes of Food101 and Caltech101 otherwise.
    # Its label names only give the folder of a path.
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
    ends = np.cumsum([len(records.ids) for records in parts])

    def read(index: int, numbers: np.ndarray) -> bytes:  # `numbers` are counted through all parts
        part = int(np.searchsorted(ends, numbers[index], side="right"))
        first = ends[part] - len(parts[part].ids)
        return parts[part].read(int(numbers[index] - first))

    for split_name, (keys, labels) in listing.splits.items():
        numbers = np.fromiter((available.get(_fold(key, stock), -1) for key in keys), np.int64, len(keys))
        missing.extend(keys[index] for index in np.flatnonzero(numbers < 0).tolist())
        # A few images are missing in TFDS, since it could not decode them (`may_lack`).
        present = np.flatnonzero(numbers >= 0)
        read_present = functools.partial(read, numbers=numbers[present])
        splits[split_name] = prepared.images([keys[index] for index in present.tolist()], labels[present], read_present)
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
    root = io.data_path(split_dir)
    root = benchmark.dataset_folder(entry, root) or root
    if entry.split_file is not None:
        hint = f"say where it is with split_dir, or {benchmark.how_to_fetch(entry, split_alone=True)}"
        return benchmark.read_split_file(root / entry.split_file, hint=hint, split_names=tuple(entry.sizes))
    names = benchmark.imagenet_names(root)
    # Record names stand for the folders of a disk.
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


# clipbias's shards. They keep the benchmark's order, labels, class names and paths, so that few-shot splits equal those
# of the image folder.

SHARDS_VERSION = "1.0.0"
MARKS = "clipbias_marks.json"  # `Split.marks` by the name of the split; older shards have none
FILE_BYTES = 128 << 20  # approximate size of a record file, which is in memory while it is written
SAMPLES = 256  # images whose sizes estimate the sum of all


def build_shards(dataset: Dataset, out_dir: str | os.PathLike) -> epath.Path:
    """Writes array_record shards to `<out_dir>/<name>_coop/1.0.0`; returns this folder. Raises `ClipbiasError`."""
    # Bytes are stored unchanged, so that decoded pixels equal those of the image folder. TFDS renames the folder when
    # everything is written.
    name = _folder_name(dataset.name)
    out = epath.Path(io.user_path(out_dir))
    # Never overwritten: runs may read from these shards right now.
    if (out / name / SHARDS_VERSION).exists():
        raise ClipbiasError(f"{out / name / SHARDS_VERSION} exists already; remove it to build it again.")
    # A split with two names (ImageNet's val and test) is stored once.
    stored_as: dict[str, str] = {}
    for split_name, split in dataset.splits.items():
        twins = (other for other in stored_as if dataset.splits[other].digest == split.digest)
        stored_as[split_name] = next(twins, split_name)
    new_folders = [out / name] if out.exists() else [out / name, out]
    try:
        folder = _write_shards(dataset, name, stored_as, out)
    except (OSError, RuntimeError) as error:  # RuntimeError: raised by the writer of records on a full disk
        words = io.reason(error).partition("; ")[0]
        raise ClipbiasError(f"cannot write shards to {out / name}: {words}; choose another folder.") from error
    finally:
        for new_folder in new_folders:
            with contextlib.suppress(OSError):
                os.rmdir(new_folder)  # after a failure; a folder that is not empty stays
    prepared = PreparedDataset(folder)
    for split_name in dict.fromkeys(stored_as.values()):
        prepared.records(split_name, "key")  # writes an index, so that opening the shards reads no image
    # The marks of the images as they were stored, so that shards and folder have one identity. If a table has a single
    # mark for all of its images, its shards are compared by the sizes of record files.
    marks = {split_name: dataset.splits[split_name].marks() for split_name in stored_as.values()}
    of_images = {name: each for name, each in marks.items() if len(each) == len(dataset.splits[name])}
    io.write_text(folder / MARKS, json.dumps(of_images))
    return folder


def _folder_name(name: str) -> str:
    return name.replace("/", "_").replace("-", "_") + "_coop"


def _write_shards(dataset: Dataset, name: str, stored_as: Mapping[str, str], out: epath.Path) -> epath.Path:
    import tensorflow_datasets as tfds

    metadata = {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "class_ids": list(dataset.class_ids),
        "template": dataset.template,
        "stored_as": stored_as,
        "upright": any(split.upright for split in dataset.splits.values()),
    }

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Does nothing: TFDS would look for published shards on the network, and leave a temporary folder."""

    # TFDS takes a builder's name and version from its class. A builder that shuffles keeps the records in memory, and
    # beyond a gigabyte needs tensorflow to store them; this one writes file after file.
    class Shards(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(num_classes=len(dataset.class_names)),
                "key": tfds.features.Text(),
            }
            return Info(
                builder=self, features=tfds.features.FeaturesDict(features), metadata=tfds.core.MetadataDict(metadata)
            )

        def _shard_iterators_per_split(self, dl_manager: object) -> dict[str, list[Callable[[], Iterator]]]:
            iterators: dict[str, list[Callable[[], Iterator]]] = {}
            for split_name in dict.fromkeys(stored_as.values()):
                split = dataset.splits[split_name]
                iterators[split_name] = [functools.partial(_examples, split, part) for part in _file_ranges(split)]
            return iterators

    Shards.name = name
    Shards.VERSION = tfds.core.Version(SHARDS_VERSION)
    tfds.disable_progress_bar()
    builder = Shards(data_dir=os.fspath(out), file_format="array_record")
    with tempfile.TemporaryDirectory() as unused:  # TFDS makes folders for downloads; there are none
        builder.download_and_prepare(download_dir=unused)
    return epath.Path(builder.data_dir)


def _file_ranges(split: Split) -> list[range]:
    """Divides images into files of about `FILE_BYTES`, estimated from samples."""
    count = len(split)
    samples = np.unique(np.linspace(0, count - 1, min(count, SAMPLES)).astype(np.int64)).tolist()
    # Few reads: a pass over ImageNet for its exact size would take long.
    total = sum(len(split.read(index)) for index in samples) / max(len(samples), 1) * count
    parts = max(1, min(count, round(total / FILE_BYTES)))
    bounds = [count * number // parts for number in range(parts + 1)]
    return [range(first, last) for first, last in itertools.pairwise(bounds)]


def find_shards(name: str, data_dir: str | os.PathLike) -> epath.Path | None:
    """Returns the folder of a dataset's shards below `data_dir`, or `None`."""
    folder = epath.Path(data_dir) / _folder_name(name) / SHARDS_VERSION
    return folder if (folder / "dataset_info.json").exists() else None


def load_shards(folder: epath.PathLike, *, template: str | None = None) -> Dataset:
    """Opens shards of `build_shards`. Arguments and errors as for `benchmark.load`."""
    records_path(folder)
    prepared = PreparedDataset(folder)
    metadata = prepared.metadata
    upright = metadata.get("upright", False)  # shards without it are the benchmark's
    marks = io.read_json(prepared.folder / MARKS, dict) if (prepared.folder / MARKS).exists() else {}
    stored = {}
    with prepared.explained("the description"):
        for split_name in set(metadata["stored_as"].values()):
            records = prepared.records(split_name, "key")
            stored[split_name] = prepared.images(records.ids, records.labels, records.read, upright=upright)
            if split_name in marks:
                by_path = dict(zip(stored[split_name].paths, marks[split_name], strict=True))
                contents = functools.partial(map, by_path.__getitem__)
                stored[split_name] = dataclasses.replace(stored[split_name], contents=contents)
        return Dataset(
            check_text("the dataset's name", metadata["name"]),
            tuple(metadata["class_names"]),
            metadata["template"] if template is None else template,
            {split_name: stored[stored_name] for split_name, stored_name in metadata["stored_as"].items()},
            tuple(metadata["class_ids"]),
        )


def _examples(split: Split, part: range) -> Iterator[tuple[str, dict]]:
    for position in part:
        hosts.check()
        key = split.keys[position]
        encoded = split.read(position)
        transforms.check_format(encoded, key)  # shards are published: a link must not bring another file into them
        yield key, {"image": BytesIO(encoded), "label": int(split.labels[position]), "key": key}
