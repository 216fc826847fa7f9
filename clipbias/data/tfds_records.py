"""Reading array_record datasets of tensorflow-datasets without tensorflow, from disks and from gs://."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from clipbias import hosts
from clipbias import io as files
from clipbias.data import record_index
from clipbias.data.record_index import RecordIndex
from clipbias.errors import ClipbiasError, UnreadableImage

CHUNK = 256  # records that are read at once
SECONDS_BETWEEN_LINES = 10.0
# Under these keys a description of features names a Python class, the last one in old descriptions.
CLASS_KEYS = frozenset({"pythonClassName", "python_class_name", "type"})
TFDS_FEATURES = "tensorflow_datasets.core.features."
_SPLIT = re.compile(r"[\w-]+")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """One split of a prepared dataset.

    Attributes:
      ids: The identifying feature of each record, which may repeat, or its number where there is none.
      labels: int32 [n].
      order: Record numbers in the order in which the builder got the records, int64 [n]; TFDS shuffles them.
      read: Record number to encoded image bytes.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    order: np.ndarray
    read: Callable[[int], bytes]


class PreparedDataset:
    """A dataset that TFDS has prepared as array_record in `folder` (the one that holds `dataset_info.json`)."""

    def __init__(self, folder: epath.PathLike) -> None:
        import tensorflow_datasets as tfds

        self.folder = epath.Path(folder)
        self._tfds = tfds
        check_features(self.folder / "features.json")
        try:
            self._builder = tfds.builder_from_directory(self.folder)
            file_format = self._builder.info.file_format
        except Exception as error:  # whatever the library raises on descriptions that are damaged
            raise ClipbiasError(
                f"{self.folder} is not a dataset that tensorflow-datasets can open ({_first_words(error)}); prepare it "
                "again."
            ) from error
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
        """Random access to the records of a split; images stay encoded."""
        features = self._builder.info.features
        skip = {
            key: self._tfds.decode.SkipDecoding()
            for key, feature in features.items()
            if isinstance(feature, self._tfds.features.Image)
        }
        with self.explained(split):
            return self._builder.as_data_source(split, decoders=skip)

    @contextlib.contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turns any error of the library into a `ClipbiasError`; damaged records make it raise nearly anything."""
        try:
            yield
        except ClipbiasError:
            raise
        except Exception as error:
            advice = "prepare the dataset again"
            if files.is_remote(self.folder):
                advice = "see that this machine may read the bucket, or copy the folder to a disk"
            raise ClipbiasError(f"{what} in {self.folder} cannot be read ({_first_words(error)}); {advice}.") from error

    def sizes(self, paths: Sequence[str]) -> list[int]:
        """The sizes of the files of records, whichever of their images are asked for (`Split.contents`)."""
        return [path.stat().length for path in sorted(self.folder.glob("*.array_record*"))]

    def records(self, split: str, id_feature: str | None) -> Records:
        """Identifiers and labels of a split, from its index; without one it is read whole, and leaves one."""
        if not _SPLIT.fullmatch(split) or split not in self.splits:  # the name becomes a part of a file's name
            raise ClipbiasError(f"{self.folder} has no split {split!r}; it has {', '.join(self.splits)}.")
        count = self._builder.info.splits[split].num_examples
        with self.explained(split):
            index = record_index.find_or_make(
                self.folder, split, id_feature, count, lambda: self._read_index(split, id_feature)
            )
        ids = index.ids or tuple(f"{number:07d}" for number in range(count))
        lock = threading.Lock()
        opened = functools.cache(lambda: self.source(split))  # at the first use

        def read(number: int) -> bytes:
            try:
                with lock:
                    source = opened()
                with self.explained(f"record {number} of {split}"):
                    return source[int(number)]["image"]
            except ClipbiasError as error:
                raise UnreadableImage(f"record {number} of {split} in {self.folder}", str(error).rstrip(".")) from error

        order = np.argsort(index.positions, kind="stable") if len(index.positions) else np.arange(count)
        return Records(ids, index.labels, order, read)

    def _read_index(self, split: str, id_feature: str | None) -> RecordIndex:
        features = self._builder.info.features
        for name in ("image", "label", id_feature):
            if name is not None and name not in features:
                raise ClipbiasError(f"{self.folder} has no feature {name!r}; it has {', '.join(features)}.")
        ids: list[str] = []
        labels: list[int] = []
        positions: list[int] = []
        source = self.source(split)
        last_line = time.monotonic()
        logging.info("%s has no index: all %d records of %s are read, this once", self.folder, len(source), split)
        with self.explained(split):
            for first in range(0, len(source), CHUNK):
                hosts.check()
                for record in source.__getitems__(range(first, min(first + CHUNK, len(source)))):
                    labels.append(int(record["label"]))
                    if id_feature:
                        ids.append(bytes(record[id_feature]).decode())
                    if "position" in features:
                        positions.append(int(record["position"]))
                if time.monotonic() > last_line + SECONDS_BETWEEN_LINES:
                    last_line = time.monotonic()
                    logging.info("%d of %d records of %s", len(labels), len(source), split)
        return RecordIndex(np.asarray(labels, np.int32), tuple(ids), np.asarray(positions, np.int64))


def records_path(path: str | os.PathLike) -> Path:
    """A path below which records lie. The only buckets that array_record reads are Google's; it does so by itself.

    Raises:
      ClipbiasError: as `files.user_path`, and of gs:// as `files.data_path`.
    """
    return files.data_path(path) if str(path).startswith("gs://") else files.user_path(path)


def find_prepared(data_dir: epath.PathLike, builder: str, lowest_version: str = "0.0.0") -> PreparedDataset:
    """The newest prepared version of `builder` below `data_dir`.

    Raises:
      ClipbiasError: none is prepared, only versions that are too old are, or it is not array_record.
    """
    place = epath.Path(records_path(data_dir)) / builder
    versions = [path for path in place.iterdir() if _is_prepared(path)] if place.exists() else []
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
    """Raises `ClipbiasError` where a description of features names a class that is not TFDS's own.

    TFDS imports whatever module is named there: a dataset from elsewhere would choose what is run.
    """

    def check_classes(pairs: list[tuple[str, object]]) -> dict[str, object]:
        for key, value in pairs:
            is_tfds = isinstance(value, str) and value.startswith(TFDS_FEATURES)
            if key in CLASS_KEYS and not is_tfds and not isinstance(value, dict):
                raise ClipbiasError(
                    f"{path} names the class {value!r}; only TFDS's own are read, because naming another runs its code."
                )
        return dict(pairs)

    try:
        json.loads(files.read_text(path), object_pairs_hook=check_classes)
    except ClipbiasError:
        if path.exists():
            raise
    except (ValueError, RecursionError) as error:
        raise ClipbiasError(f"{path} is not a description of features ({error}); prepare the dataset again.") from error


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _is_prepared(path: epath.Path) -> bool:
    return bool(_VERSION.fullmatch(path.name)) and (path / "dataset_info.json").exists()


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
